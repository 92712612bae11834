"""The programs that shardvec is compared with."""

"""What shardvec is compared with."""

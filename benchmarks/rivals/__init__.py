"""What shardvec is compared with: programs, and other ways to draw negatives."""

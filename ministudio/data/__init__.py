"""What a batch is: cameras, rays and lights."""

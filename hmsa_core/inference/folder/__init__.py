"""A folder of images into a label store."""

"""Plan a workspace from folders of images: what they hold, who may use which image, and the recipe that fits."""

"""One network on one image: prediction over scales, GPU kernels, pictures of it."""

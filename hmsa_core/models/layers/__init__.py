"""Building blocks of networks: convolutions, resizing, batch norm."""

"""The inspector: what a threshold keeps, in a terminal (`autolabel inspect`) and in a browser (`autolabel serve`)."""

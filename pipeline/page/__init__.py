"""The inspector of label stores, in a terminal (`autolabel inspect`) and in a browser (`autolabel serve`)."""

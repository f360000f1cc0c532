"""One file per data set; file names are recipe names."""

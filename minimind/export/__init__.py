"""A model in other programs' file formats, one module per format."""

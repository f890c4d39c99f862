"""One file per axis: options glue a kernel or a model change to the model. Importing them does not import torch."""

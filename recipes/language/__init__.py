"""A small Transformer that predicts characters: NovoGrad's paper trains Transformer-XL on WikiText-103."""

"""Two weights and a product: section 4 and appendix A of NovoGrad's paper."""

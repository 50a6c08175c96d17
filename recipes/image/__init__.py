"""A small ResNet on small images: NovoGrad's paper trains ResNet-50 on ImageNet."""

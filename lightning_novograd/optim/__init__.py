from lightning_novograd.optim.novograd import NovoGrad, novograd

__all__ = ["NovoGrad", "novograd"]

"""Weights of an untrained network: the same by seed and name, however and in whatever order they are read.

A baseline needs the network as its library initialises it; streaming needs it layer by layer.
"""

import copy
import functools
import hashlib

import torch


def seeded(name):
    """A generator seeded by `name` alone: draws are the same in any order, in any batch and on any device."""
    return torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:15], 16))


def first_values(name, like, generator):
    """A parameter that no library initialises: a matrix N(0, 0.02^2), a scale one, a bias zero."""
    if like is None:
        return None
    x = torch.full(like.shape, 0.0 if name.endswith("bias") else 1.0)
    return torch.nn.Parameter(x.normal_(0, 0.02, generator=generator) if x.ndim > 1 else x)


class Untrained:
    """Weights of `model` (on the meta device) as its library initialises them; buffers stay as they are.

    The interface is that of models.Weights: like, bytes, ready, size, read.
    """

    def __init__(self, model, seed):
        self.seed, self.bytes, self.empty = seed, 0, copy.deepcopy(model)
        self.like = {name: x.to("meta") for name, x in model.state_dict().items()}
        self.buffers = {name: x.cpu() for name, x in model.state_dict().items() if not x.is_meta}
        self.tied = getattr(model, "all_tied_weights_keys", {})
        # the weights of one module's children are drawn together
        self.drawn = functools.lru_cache(1)(self.draw)

    def ready(self, names):
        """Nothing to open."""

    def size(self, names):
        """Bytes in memory."""
        return sum(self.like[name].nbytes for name in names)

    def initialise(self, path, module):
        """Apply `_init_weights` of the nearest model around a module, if there is one."""
        owner, methods = self.empty, []
        for name in ["", *path.split(".")] if path else [""]:
            owner = getattr(owner, name) if name else owner
            methods.append(getattr(owner, "_init_weights", None))
        for method in [method for method in methods if method][-1:]:
            method(module)

    @torch.no_grad()
    def draw(self, path):
        """{child: module} of a module, with the children's own weights in fp32; those below stay empty."""
        whole, generator = copy.copy(self.empty.get_submodule(path)), seeded(f"{self.seed} {path}")
        whole._modules = {name: copy.copy(x) for name, x in whole._modules.items() if x is not None}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            for name, child in whole._modules.items():
                empty = child._parameters.items()
                child._parameters = {key: first_values(key, like, generator) for key, like in empty}
                if hasattr(child, "reset_parameters"):
                    child.reset_parameters()
                self.initialise(f"{path}.{name}".lstrip("."), child)
            self.initialise(path, whole)  # some libraries set the weights of a module's children
        return whole._modules

    def read(self, names):
        """(name, tensor on the CPU in the model's dtype) of each."""
        for name in names:
            path, _, own = self.tied.get(name, name).rpartition(".")
            parent, _, child = path.rpartition(".")
            if name in self.buffers:
                yield name, self.buffers[name]
            elif not path:
                generator = seeded(f"{self.seed} {name}")
                yield name, first_values(own, self.like[name], generator).to(self.like[name].dtype)
            else:
                yield name, self.drawn(parent)[child]._parameters[own].to(self.like[name].dtype)

"""A pretend GPU: its tensors compute on the CPU, and what CUDA would refuse is noted with its place.

    with pretend.gpu() as refused:  # stages that ask for a device get this one
        stage.main([...])
    assert not refused  # {what and where: how often}

The device is called "lazy", the only one whose gradients torch computes without a driver.
"""

import contextlib
import sys
import threading
from collections import Counter
from unittest import mock

import torch
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import common

_device_constructors()  # torch caches them: with its own tensor(), not with the one below
DEVICE = torch.device("lazy", 0)
REFUSED = Counter()
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
NOT_SHOWN = ("site-packages/torch/", "helpers_pretend.py", "contextlib.py", "threading.py", "unittest/")


def note(what):
    """Count `what` at the three innermost lines outside torch: file:line < file:line < file:line."""
    frame, lines = sys._getframe(1), []
    while frame and len(lines) < 3:
        name = frame.f_code.co_filename
        if not any(part in name for part in NOT_SHOWN):
            lines.append(f"{name.rpartition('site-packages/')[2]}:{frame.f_lineno}")
        frame = frame.f_back
    REFUSED[f"{what} at {' < '.join(lines)}"] += 1


def is_ours(device):
    return device is not None and torch.device(device).type == DEVICE.type


def as_index(i):
    if isinstance(i, tuple):
        return tuple(map(as_index, i))
    return torch.tensor(i) if isinstance(i, list) else i


class OnDevice(torch.Tensor):
    """A tensor on the pretend device; `held` has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        about = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        x = torch.Tensor._make_wrapper_subclass(cls, held.size(), device=DEVICE, **about)
        x.held = held
        return x

    def __getitem__(self, i):
        return torch.Tensor.__getitem__(self, as_index(i))

    def __setitem__(self, i, value):
        if not isinstance(value, torch.Tensor):
            value = OnDevice(torch.tensor(value, dtype=self.dtype))
        return torch.Tensor.__setitem__(self, as_index(i), value)

    def tolist(self):
        return self.held.tolist()

    def numpy(self, *args, **more):
        note("numpy()")
        return self.held.numpy(*args, **more)

    def record_stream(self, stream):
        pass

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return run(op, args, kwargs or {})


def bare(x):
    return x.held if isinstance(x, OnDevice) else x


def tensors(*trees):
    return [x for x in tree_leaves(trees) if isinstance(x, torch.Tensor)]


def check(name, args, kwargs):
    """Note what CUDA refuses about the arguments of an operation."""
    given, generator = tensors(args, kwargs), kwargs.get("generator")
    if name in INDEXED:  # indices may be on the CPU
        given = tensors(args[0], args[2:])
    if generator is not None and generator.device.type == "cpu":
        note(f"{name} with a CPU generator")
    if host := [tuple(x.shape) for x in given if not isinstance(x, OnDevice) and x.dim()]:
        note(f"{name} of {host} on the CPU beside the device")


def run(op, args, kwargs):
    """An operation of torch, noted where a tensor or the result is on the device."""
    name, here = op._schema.name.partition("::")[2], is_ours(kwargs.get("device"))
    given = {id(bare(x)): x for x in tensors(args, kwargs)}
    if not here and not any(isinstance(x, OnDevice) for x in given.values()):
        return op(*args, **kwargs)
    if name != "_to_copy" and op._can_decompose():
        with Mode():
            return op.decompose(*args, **kwargs)
    if name == "_fused_sdp_choice":
        return 0
    held_args, held = tree_map(bare, (args, kwargs))
    if here:
        held["device"] = torch.device("cpu")
    if name == "_to_copy":
        stays = here or kwargs.get("device") is None
        return OnDevice(op(*held_args, **held)) if stays else op(*held_args, **held)
    if name != "copy_" and not (here and name.endswith("_like")):  # of any tensor, made on the device
        check(name, args, kwargs)
    found = op(*held_args, **held)
    new = {id(x): OnDevice(x) for x in tensors(found) if not isinstance(x, OnDevice)}
    return tree_map(lambda x: (new | given).get(id(x), x), found)


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return run(op, args, kwargs or {})


def made_by(make):
    """torch.tensor or torch.as_tensor, which would ask a driver for the device."""

    def tensor(data, *args, device=None, **more):
        if isinstance(data, list | tuple):
            data = tree_map(bare, data)
        if not is_ours(device):
            return make(data, *args, **more, **({} if device is None else {"device": device}))
        x = data if isinstance(data, torch.Tensor) else make(data, *args, **more)
        return x.to(device, more.get("dtype"))

    return tensor


def enter(mode):
    """torch.inference_mode would keep torch from taking operations apart; no gradients are enough."""
    mode.before = torch.is_grad_enabled()
    torch.set_grad_enabled(mode.before and not mode.mode)


def autocast(device_type, *args, real=torch.autocast, **more):
    return contextlib.nullcontext() if is_ours(device_type) else real(device_type, *args, **more)


def thread(self, start=threading.Thread._bootstrap_inner):
    with Mode():
        start(self)


REPLACED = [(torch, "tensor", made_by(torch.tensor)), (torch, "as_tensor", made_by(torch.as_tensor))]
REPLACED += [(torch, "autocast", autocast), (torch, "lazy", torch.cpu)]
REPLACED += [(torch.inference_mode, "__enter__", enter), (threading.Thread, "_bootstrap_inner", thread)]
REPLACED += [(torch.inference_mode, "__exit__", lambda mode, *error: torch.set_grad_enabled(mode.before))]
REPLACED += [(torch.Tensor, "pin_memory", lambda self: self), (torch.cuda, "stream", contextlib.nullcontext)]
REPLACED += [(torch.cuda, name, mock.MagicMock()) for name in ("Stream", "current_stream", "synchronize")]


@contextlib.contextmanager
def chosen(device, dtype=torch.float32):
    """Every stage that asks for a device gets this one, and this precision."""
    choose, answer = common.choose_device, (torch.device(device), dtype, "chosen by a test")
    with contextlib.ExitStack() as stack:
        for module in [m for m in sys.modules.values() if vars(m).get("choose_device") is choose]:
            stack.enter_context(mock.patch.object(module, "choose_device", lambda *name: answer))
        yield


@contextlib.contextmanager
def gpu():
    """Every stage, in every thread, gets the pretend device. Yields what CUDA would refuse."""
    REFUSED.clear()
    future = torch.__future__
    before = future.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        stack.callback(future.set_overwrite_module_params_on_conversion, before)
        future.set_overwrite_module_params_on_conversion(True)  # Module.to replaces the parameters
        for owner, name, other in REPLACED:
            stack.enter_context(mock.patch.object(owner, name, other, create=name == "lazy"))
        stack.enter_context(chosen(DEVICE))
        stack.enter_context(Mode())
        yield REFUSED

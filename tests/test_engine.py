"""Every switch of the engine gives the run without it: to the bit, or to the rounding stated here."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sidlsg.errors import UsageError
from sidlsg.method.algorithm import Batch, update_generator
from sidlsg.method.ema import Ema
from sidlsg.method.optim import FullAdam, LeanAdam
from sidlsg.settings import make_config
from sidlsg.training.attention import choose_attention
from sidlsg.training.engine import halve_weights
from support.algorithm import KAPPAS, Setup, capture_gradient, draws
from support.runs import config_for, trainer, write_prompts
from support.tiny import TOKENS, WIDTH, shallow_unet, tiny_unet

CPU = torch.device("cpu")


def run(teacher: Path, out: Path, prompts: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """psi, theta, their second moments and the average after four iterations; a run that was begun in ``out`` goes on there."""
    subject = trainer(config_for(teacher, **changes), out, prompts)
    subject.resume()
    while subject.images_seen < 4 * subject.config.batch:
        subject.iterate()
    return {f"{group}.{name}": x.clone() for group, part in subject.engine.state().items() for name, x in part.items()}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.txt")


@pytest.fixture(scope="module")
def plain(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory, prompts: Path) -> dict[str, torch.Tensor]:
    return run(tiny_teacher, tmp_path_factory.mktemp("plain") / "run", prompts)


@pytest.mark.parametrize(
    "switch",
    [
        {"lean_adam": False},
        {"offload_optimizer": True},
        {"ema_device": "cpu"},
        {"gradient_checkpointing": True},
        {"two_stage": True},
        {"two_stage": True, "gradient_checkpointing": True},
        {"gradient_checkpointing": True, "offload_optimizer": True, "ema_device": "cpu"},
    ],
    ids=lambda switch: "+".join(switch),
)
def test_switches_that_change_no_bit(switch, plain, tiny_teacher, tmp_path, prompts) -> None:
    found = run(tiny_teacher, tmp_path / "run", prompts, **switch)
    assert found.keys() == plain.keys()
    assert [name for name in plain if not torch.equal(found[name], plain[name])] == []


@pytest.mark.parametrize(
    "switch",
    [{"channels_last": True}, {"fake_micro_batch": 8}, {"attention": "eager"}],
    ids=lambda switch: "+".join(switch),
)
def test_switches_that_change_rounding(switch, plain, tiny_teacher, tmp_path, prompts) -> None:
    """Adam's first steps are sign-like, so the few elements whose gradient is noise may differ more."""
    found = run(tiny_teacher, tmp_path / "run", prompts, **switch)
    for group in ("fake.", "generator."):
        ours, theirs = (torch.cat([v.flatten() for k, v in r.items() if k.startswith(group)]) for r in (found, plain))
        assert ((ours - theirs).abs() < 2e-5).double().mean() > 0.97
        assert (ours - theirs).abs().max() < 4 * 2.5e-3  # four steps of 1e-3 in opposite directions, v still small


@pytest.mark.parametrize("kappas", KAPPAS.values(), ids=KAPPAS.keys())
@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_the_gradient_by_one_network_at_a_time_is_the_gradient(kappas, alpha) -> None:
    """In float64, for every strategy, with psi and theta away from phi."""
    gradients, losses = [], []
    for two_stage in (False, True):
        setup = Setup(kappas, alpha)
        setup.disturb()
        setup.nets.two_stage = two_stage
        gradients.append(capture_gradient(setup, draws(9), 4))
        setup.update_theta.optimizer.step = lambda: None  # type: ignore[method-assign, assignment]
        losses.append(update_generator(setup.nets, setup.update_theta, draws(9), 4).loss)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12 * float(gradients[0].abs().max()))
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)


def test_one_network_at_a_time_leaves_out_a_non_finite_sample_too() -> None:
    results = []
    for poison in (False, True):
        setup = Setup()
        setup.disturb()
        setup.nets.two_stage = True
        batch = draws(3)
        if poison:
            batch.eps[2] = float("nan")
        else:
            kept = [0, 1, 3, 4, 5, 6, 7]
            batch = Batch(batch.z[kept], batch.c.rows(kept), batch.t[kept], batch.eps[kept])
        results.append(capture_gradient(setup, batch, 1))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@contextmanager
def saved_bytes() -> Iterator[list[int]]:
    """Bytes of activations that autograd keeps, at their peak."""
    now, peak = [0], [0]
    alive: dict[int, int] = {}

    class Kept:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            now[0] += self.size
            peak[0] = max(peak[0], now[0])

        def __del__(self) -> None:
            now[0] -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        yield peak
    alive.clear()


@pytest.mark.parametrize("kappas", [KAPPAS["lsg"], KAPPAS["long"]])
def test_switches_that_save_memory_save_it_in_the_frozen_passes(kappas) -> None:
    """Fewer activations are alive at once in the generator's update, whose score networks are frozen."""
    peaks = {}
    for name in ("plain", "two_stage", "gradient_checkpointing"):
        setup = Setup(kappas)
        setup.nets.two_stage = name == "two_stage"
        if name == "gradient_checkpointing":
            for unet in (setup.phi, setup.psi, setup.theta):
                unet.enable_gradient_checkpointing()
        with saved_bytes() as peak:
            update_generator(setup.nets, setup.update_theta, draws(5), 8)
        peaks[name] = peak[0]
    passes = 5 if kappas == KAPPAS["lsg"] else 4
    # Two-stage: G and one network (one or two passes) instead of all.
    assert peaks["two_stage"] < 1.15 * 3 / passes * peaks["plain"]
    assert peaks["gradient_checkpointing"] < 0.5 * peaks["plain"]


def test_gradients_of_one_network_are_gone_while_the_other_is_updated() -> None:
    setup = Setup()
    other = []
    for net, idle, batch in ((setup.psi, setup.theta, 0), (setup.theta, setup.psi, 1)):
        net.conv_in.weight.register_hook(
            lambda g, idle=idle: other.append([p.grad for p in idle.parameters() if p.grad is not None])
        )
        assert batch in (0, 1)
    setup.iterate(draws(0), draws(1))
    assert len(other) == 4
    assert all(grads == [] for grads in other)
    assert all(p.grad is None for net in (setup.psi, setup.theta, setup.phi) for p in net.parameters())


class NoHostReads(TorchDispatchMode):
    """Fails on everything that makes the host wait for a device: reading a value, sizes that depend on values."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "index.Tensor")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if "index.Tensor" in name and all(i is None or i.dtype != torch.bool for i in args[1]):
            return func(*args, **(kwargs or {}))  # indexing by numbers has a known size
        assert not any(word in name for word in self.FORBIDDEN), f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("two_stage", [False, True])
@pytest.mark.parametrize("clip_value", [None, 1.0])
def test_an_iteration_never_waits_for_the_device(two_stage, clip_value) -> None:
    setup = Setup()
    setup.nets.two_stage = two_stage
    setup.update_theta.clip_value = clip_value
    ema = Ema(setup.theta)
    setup.iterate(draws(0), draws(1))
    with NoHostReads():
        setup.iterate(draws(2), draws(3))
        ema.update(0.9)
    with pytest.raises(AssertionError, match="waits"), NoHostReads():
        setup.empty["text"].sum().item()


def test_a_half_teacher_is_the_same_teacher_under_autocast() -> None:
    torch.manual_seed(0)
    full = tiny_unet()
    half = copy.deepcopy(full)
    halve_weights(half, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16, torch.float32}
    outputs = []
    for unet in (full, half):
        setup = Setup(autocast=torch.bfloat16, dtype=torch.float32)
        setup.nets.teacher.network = unet.requires_grad_(False)
        batch = draws(1, dtype=torch.float32)
        x = batch.z.clone().requires_grad_()
        out = setup.nets.teacher(x, batch.t, batch.c)
        (gradient,) = torch.autograd.grad(out.square().sum(), x)
        outputs.append((out, gradient))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])


def test_a_half_teacher_belongs_to_bf16() -> None:
    with pytest.raises(UsageError, match="half_teacher"):
        make_config("cpu", {"half_teacher": True})


def test_compiled_networks_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through dynamo and AOTAutograd, as with inductor but without its code generation: to float64 rounding."""
    gradients = []
    for compiled in (False, True):
        torch._dynamo.reset()
        setup = Setup(batch=2, unet=shallow_unet())
        setup.disturb()
        if compiled:
            for unet in (setup.phi, setup.psi, setup.theta):
                unet.compile(dynamic=False, backend="aot_eager")
        names = list(setup.theta.state_dict())
        gradients.append(capture_gradient(setup, draws(9, 2), 2))
        assert names == list(shallow_unet().state_dict())
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12 * float(gradients[0].abs().max()))


def test_optimisers_can_be_exchanged_when_a_run_is_resumed(plain, tiny_teacher, tmp_path, prompts) -> None:
    """Half the run with one, half with the other: the second moment and the count of steps are all there is to carry."""
    for first, second in ((True, False), (False, True)):
        out = tmp_path / f"{first}"
        begun = trainer(config_for(tiny_teacher, lean_adam=first), out, prompts)
        for _ in range(2):
            begun.iterate()
        begun.save()
        found = run(tiny_teacher, out, prompts, lean_adam=second)
        assert [name for name in plain if not torch.equal(found[name], plain[name])] == []


def test_the_streamed_optimiser_keeps_its_state_on_the_cpu() -> None:
    parameters = [torch.nn.Parameter(torch.randn(5, 3)) for _ in range(4)]
    copies = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    streamed, full = LeanAdam(parameters, lr=0.1, chunk=16, offload=True), FullAdam(copies, lr=0.1)
    for _ in range(3):
        for p, q in zip(parameters, copies, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        streamed.step()
        full.step()
    assert streamed.steps == full.steps == 3
    for p, q in zip(parameters, copies, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(streamed.second_moment(p), full.second_moment(q))
        assert streamed.second_moment(p).device == CPU


def test_an_average_on_the_cpu_is_float32_and_comes_back_in_the_weights_dtype() -> None:
    module = torch.nn.Linear(3, 3).half()
    ema = Ema(module, CPU)
    ema.update(0.5)
    with ema.swapped_in():
        assert module.weight.dtype == torch.float16
    assert {a.dtype for a in ema.average.values()} == {torch.float32}


def test_fused_and_plain_attention_have_the_same_gradient() -> None:
    x = torch.randn(2, 4, 4, 4, requires_grad=True, generator=torch.Generator().manual_seed(0))
    c = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    found, shown = [], []
    for attention in ("sdpa", "eager"):
        unet = tiny_unet()
        shown.append(choose_attention(unet, attention))
        out = unet(x, torch.tensor([5, 900]), c).sample
        found.append((out, *torch.autograd.grad(out.square().sum(), x)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-4)
    assert shown == ["sdpa (FlashAttention for heads of 4)", "eager"]


@pytest.mark.parametrize(
    ("attention", "flash", "cudnn"),
    [("flash", True, False), ("cudnn", False, True), ("efficient", False, False), ("xformers", True, True)],
)
def test_a_kernel_can_be_chosen_and_is_named(attention: str, flash: bool, cudnn: bool) -> None:
    """On a CPU there is FlashAttention or nothing fused. The next network with ``sdpa`` has PyTorch's own choice again."""
    cuda = torch.backends.cuda
    shown = choose_attention(tiny_unet(), attention)
    assert (cuda.flash_sdp_enabled(), cuda.cudnn_sdp_enabled()) == (flash, cudnn)
    assert shown.endswith(f"({'FlashAttention' if flash else 'plain'} for heads of 4)")
    assert ("not usable" in shown) == (attention == "xformers")
    assert choose_attention(tiny_unet(), "sdpa").startswith("sdpa (FlashAttention for")
    assert (cuda.flash_sdp_enabled(), cuda.cudnn_sdp_enabled()) == (True, True)


def test_pure_fp16_says_what_it_costs(tiny_teacher, tmp_path, prompts, capsys) -> None:
    from rich.console import Console

    settings = {"precision": "fp16", "adam_eps": 1e-6, "clip_value": 1.0, "lr": 1e-5, "images": 8}
    subject = trainer(config_for(tiny_teacher, **settings), tmp_path / "run", prompts)
    subject.console = Console(width=400)
    subject.run()
    assert "lost in the rounding" in capsys.readouterr().out

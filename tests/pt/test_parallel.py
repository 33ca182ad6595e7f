"""DistributedDataParallel and FSDP2 in one process, over gloo."""

import pytest
import torch
import torch.distributed as dist
from comparing import error_of
from tolerances import MODEL

from xlmfam.pt.xglm_modules import XGLMLayer

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients(model, ids):
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}


def assert_same(came, expected):
    for name, value in expected.items():
        grad = came[name].full_tensor() if hasattr(came[name], "full_tensor") else came[name]
        largest = max(v.abs().max().item() for v in expected.values())
        assert error_of(grad.numpy(), value.numpy(), largest) < MODEL, name


def test_data_parallel(make, ids, group):
    model = make().train()
    expected = {name: value.clone() for name, value in gradients(model, ids).items()}
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    output = parallel(ids, labels=ids, use_cache=True)
    assert output.logits.shape == (2, 7, 53), "the output passes through as it is"
    assert_same(gradients(parallel, ids), expected)


def test_fully_sharded(make, ids, group):
    fully_shard = pytest.importorskip("torch.distributed.fsdp").fully_shard
    model = make().train()
    expected = {name: value.clone() for name, value in gradients(model, ids).items()}
    logits = model(ids).logits.detach()
    mesh = dist.init_device_mesh("cpu", (1,))
    for layer in model.modules():
        if isinstance(layer, XGLMLayer):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert error_of(model(ids).logits.detach().numpy(), logits.numpy()) < MODEL
    assert_same(gradients(model, ids), expected)
    assert model.lm_head.weight is model.model.embed_tokens.weight

"""Sizes of the flavors that torchtitan's llama3 gains."""

from tests.support.models import on_meta


def build(flavor: str):
    from torchtitan.config import JobConfig

    job = JobConfig()
    job.model.flavor = flavor
    return on_meta(job)


def test_530M_is_the_size_of_the_paper():
    model = build("530M")
    count = sum(p.numel() for p in model.parameters())
    # Per layer: four 1024 x 1024 projections, three 1024 x 1536 ones, two norms.
    layer = 4 * 1024 * 1024 + 3 * 1024 * 1536 + 2 * 1024
    assert count == 30 * layer + 2 * 128256 * 1024 + 1024
    assert round(count / 1e6) == 530
    block = model.layers["0"]
    assert block.feed_forward.w1.out_features == 1536
    assert block.attention.head_dim == 128 and block.attention.n_heads == 8
    assert len(model.layers) == 30


def test_530M_byte_has_the_same_body():
    words, model = build("530M"), build("530M_byte")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["tok_embeddings.weight"] == shapes["output.weight"] == (264, 1024)
    body = {name: tuple(p.shape) for name, p in words.named_parameters() if "layers" in name}
    assert body == {name: shape for name, shape in shapes.items() if "layers" in name}

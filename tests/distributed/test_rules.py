import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mmjax.distributed.mesh import MeshConfig, make_mesh
from mmjax.distributed.rules import MESH_AXES, RULES, constrain, shardings, spec


def test_every_rule_names_mesh_axes_that_exist():
    for axis in RULES:
        for entry in spec((axis,)):
            for name in (entry,) if isinstance(entry, str) else entry or ():
                assert name in MESH_AXES


def test_spec_keeps_one_entry_for_each_dimension():
    assert spec(("layers", "embed", "heads", "head_dim")) == P(None, "fsdp", "tensor", None)
    assert spec(("batch", "length", "act_embed")) == P(("data", "fsdp"), "context", None)
    assert spec((None, "vocab")) == P(None, "tensor")
    assert spec(()) == P()


def test_unknown_axis_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="'embd'.*\"embed\""):
        spec(("vocab", "embd"))


def test_one_mesh_axis_twice_is_a_collision():
    with pytest.raises(ValueError, match="'batch' and 'embed' both lie on mesh axis 'fsdp'"):
        spec(("batch", "embed"))


def test_shardings_of_a_tree():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    blocks = ({"q": ("embed", "heads", "head_dim")}, {"count": ()})
    axes = {"scale": ("embed",), "blocks": blocks, "none": None}
    tree = shardings(axes, mesh)
    assert tree["scale"].spec == P("fsdp")
    assert tree["blocks"][0]["q"].spec == P("fsdp", "tensor", None)
    assert tree["blocks"][1]["count"].spec == P()
    assert tree["none"] is None
    with pytest.raises(ValueError, match="blocks/q.*'hedas'.*\"heads\""):
        shardings({"blocks": {"q": ("embed", "hedas")}}, mesh)
    with pytest.raises(ValueError, match="scale: expected a tuple"):
        shardings({"scale": "embed"}, mesh)


def test_a_mesh_that_lacks_an_axis_is_an_error():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(ValueError, match="'fsdp'.*make_mesh"):
        shardings({"w": ("embed", None)}, mesh)


def test_constrain_lays_out_and_keeps_values():
    x = np.arange(8 * 6 * 4, dtype=np.float32).reshape(8, 6, 4)
    f = jax.jit(lambda x: constrain(x * 2, "batch", "length", "act_mlp"))
    mesh = make_mesh(MeshConfig(data=2, tensor=2, context=2))
    with jax.set_mesh(mesh):
        y = f(x)
    assert y.sharding.is_equivalent_to(jax.NamedSharding(mesh, P("data", "context", "tensor")), 3)
    np.testing.assert_array_equal(y, x * 2)


def test_constrain_without_mesh_or_on_one_device_is_identity_and_still_checks():
    x = jnp.ones((3, 5))
    assert constrain(x, "batch", None) is x
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        assert constrain(x, "batch", "act_embed") is x
    with pytest.raises(ValueError, match="'bach'.*\"batch\""):
        constrain(x, "bach", None)
    with pytest.raises(ValueError, match="1 axes.*2 dimensions"):
        constrain(x, "batch")


def test_constrain_inside_shard_map_leaves_manual_axes_out():
    x = np.arange(8.0 * 4, dtype=np.float32).reshape(8, 4)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, tensor=4))):

        def body(x):
            return constrain(x + 1, "batch", "act_mlp")

        part = jax.shard_map(body, in_specs=P("data"), out_specs=P("data"), axis_names={"data"})
        whole = jax.shard_map(body, in_specs=P("data", "tensor"), out_specs=P("data", "tensor"))
        np.testing.assert_array_equal(jax.jit(part)(x), x + 1)
        np.testing.assert_array_equal(jax.jit(whole)(x), x + 1)


@pytest.mark.parametrize(
    "sizes", [dict(data=8), dict(fsdp=8), dict(data=2, tensor=4), dict(fsdp=2, context=4)]
)
def test_loss_and_gradients_do_not_depend_on_the_mesh(sizes):
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"up": jax.random.normal(keys[0], (16, 24)), "down": jax.random.normal(keys[1], (24, 16))}
    axes = {"up": ("embed", "mlp"), "down": ("mlp", "embed")}
    x = jax.random.normal(keys[2], (8, 12, 16))

    def loss(params, x):
        x = constrain(x, "batch", "length", "act_embed")
        hidden = constrain(jnp.tanh(x @ params["up"]), "batch", "length", "act_mlp")
        return jnp.mean(constrain(hidden @ params["down"], "batch", "length", "act_embed") ** 2)

    want = jax.jit(jax.value_and_grad(loss))(params, x)
    mesh = make_mesh(MeshConfig(**sizes))
    with jax.set_mesh(mesh):
        got = jax.jit(jax.value_and_grad(loss))(jax.device_put(params, shardings(axes, mesh)), x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), want, got)

"""Which sites there are, and which dims are the same at which: each site's last axis is one of a few bases."""

SITES = (
    "resid_pre", "resid_mid", "resid_post", "attn_norm", "mixer_norm", "mlp_norm", "attn_heads", "attn_out",
    "mixer_out", "mlp_out", "mlp_pre", "mlp_act", "mlp_down",
)  # fmt: skip

RESID_POST = "resid_post"
RESIDUAL, HEADS, NEURONS = "residual", "attn_heads", "mlp"
# Sites of the residual stream and of what is read from it or added to it: a dim means the same thing in all of them.
RESIDUAL_BASIS = (
    "resid_pre", "resid_mid", "resid_post", "attn_norm", "mixer_norm", "mlp_norm", "attn_out", "mixer_out", "mlp_out",
    "mlp_down",
)  # fmt: skip
NORM_OUTPUTS = ("attn_norm", "mixer_norm", "mlp_norm")
# Why most models have no site of a mixer: nothing is missing there.
NO_OTHER_MIXER = "no part of the block mixes tokens in another way than by softmax attention"


def basis_of(site: str) -> str:
    """`residual` (d_model), `attn_heads` (the heads, concatenated) or `mlp` (the MLP's neurons)."""
    if site in RESIDUAL_BASIS:
        return RESIDUAL
    return HEADS if site == "attn_heads" else NEURONS

"""Which dims are the same at which sites."""

# Sites of the residual stream and of what is read from it or added to it: a dim means the same thing in all of them.
RESIDUAL_BASIS = (
    "resid_pre", "resid_mid", "resid_post", "attn_norm", "mixer_norm", "mlp_norm", "attn_out", "mixer_out", "mlp_out",
    "mlp_down",
)  # fmt: skip
# Why most models have no site of a mixer: nothing is missing there.
NO_OTHER_MIXER = "no part of the block mixes tokens in another way than by softmax attention"

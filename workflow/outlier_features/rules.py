"""The selection rules: their sites, and how layer share and position share can be read.

`dettmers`, `dettmers_heads`: LLM.int8() (Dettmers et al. 2022, section 4), |x| at least the threshold on the inputs of
the linear layers. `massive`: Sun et al. 2024, |x| above a threshold and a multiple of the median, on `resid_post`.
"""

DETTMERS_SITES = {"dettmers": ("attn_norm", "mixer_norm", "mlp_norm"), "dettmers_heads": ("attn_heads",)}
MASSIVE_SITE = "resid_post"
# Why most models have no site of a mixer: nothing is missing there.
NO_OTHER_MIXER = "no part of the block mixes tokens in another way than by softmax attention"
# Sites whose dims are those of the residual stream; a dim means the same thing in all of them.
RESIDUAL_BASIS = (
    "resid_pre", "resid_mid", "resid_post", "attn_norm", "mixer_norm", "mlp_norm", "attn_out", "mixer_out", "mlp_out",
    "mlp_down",
)  # fmt: skip
LAYER_READINGS = ("blocks", "sites_share")
POSITION_READINGS = ("union", "pooled", "affected")

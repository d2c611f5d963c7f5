"""The selection rules: their sites, and how layer share and position share can be read.

`dettmers`, `dettmers_heads`: LLM.int8() (Dettmers et al. 2022, section 4), |x| at least the threshold on the inputs of
the linear layers. `massive`: Sun et al. 2024, |x| above a threshold and a multiple of the median, on `resid_post`.
"""

DETTMERS_SITES = {"dettmers": ("attn_norm", "mixer_norm", "mlp_norm"), "dettmers_heads": ("attn_heads",)}
MASSIVE_SITE = "resid_post"
LAYER_READINGS = ("blocks", "sites_share")
POSITION_READINGS = ("union", "pooled", "affected")

"""What one type's configuration wants besides small sizes: `CHANGES` by type, a dict for each part.

`rope_parameters` is merged into the default's.
"""

from typing import Any


def _sections(*sections: int) -> dict[str, Any]:
    """Rotary positions of three axes (time, height, width)."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}}


_FULL = {"rope_type": "default", "rope_theta": 10000.0}
_SOUND = {"num_filters": 2, "depths": [1] * 7}
_VQ = {"base_channels": 32, "channel_multiplier": [1, 2]}
_SWA = {
    "swa_num_attention_heads": 2, "swa_num_key_value_heads": 2, "swa_q_lora_rank": 28, "swa_kv_lora_rank": 20,
    "swa_head_dim": 24, "swa_qk_nope_head_dim": 16, "swa_v_head_dim": 24, "head_dim": 24, "qk_nope_head_dim": 16,
}  # fmt: skip
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_chunk_size": 8}
_ATTENTION_AND_MAMBA = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
_SHARED_BLOCKS = ["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"]
_GEMMA4 = {
    "num_hidden_layers": 5, "hidden_size_per_layer_input": 12, "global_head_dim": 32, "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention", "full_attention"],
    "use_double_wide_mlp": True,
}  # fmt: skip
_GEMMA4_UNIFIED = {"global_head_dim": 32, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
_NEMOTRON_H = {
    "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "chunk_size": 8,
    "moe_shared_expert_intermediate_size": 40, "moe_intermediate_size": 40,
}  # fmt: skip
_INDEXER = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 24, "indexer_budget": 8,
    "indexer_compress_ratio": 2, "hc_lowrank": 12, "ngram_vocab_size_base": 100, "split_ngram_parts": 2,
    "ple_layer_ids": [2], "eos_token_id": 2, "ple_embed_dim": 32, "heads_per_ngram": 4,
}  # fmt: skip
_GEMMA3N_TEXT = {
    "num_hidden_layers": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "num_kv_shared_layers": 2, "intermediate_size": [112, 112, 112, 112, 112], "laurel_rank": 6,
    "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0, 0.0], "vocab_size_per_layer_input": 320,
}  # fmt: skip

CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA, "attn_layer_indices": [2]},
    "blt": {
        "encoder_hash_byte_group_vocab": 500,
        "patcher_config": {"head_dim": 16},
        "encoder_config": {"hidden_size_global": 64},
        "decoder_config": {
            "hidden_size": 32, "hidden_size_global": 64, "num_hidden_layers": 2, "num_key_value_heads": 4,
            "head_dim": 8,
        },
        "global_config": {
            "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
            "head_dim": 16, "intermediate_size": 112,
        },
    },
    "chameleon": {
        "vocabulary_map": {"<image>": 280, "IMGIMGAZ": 281, "IMGIMGBZ": 282},
        "vq_config": _VQ | {"num_embeddings": 2, "resolution": 32},
    },
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": {**_FULL, "mrope_section": [4, 4, 4]}}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {**_FULL, "mrope_section": [4, 4, 4]}}},
    "cosmos3_edge": {"text_config": _sections(4, 4, 4), "projector_hidden_size": 48},
    "cpmant": {"prompt_types": 4, "prompt_length": 4, "segment_types": 4, "dim_head": 24, "dim_ff": 112},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 40, "moe_num_experts": 8, "moe_top_k": 2},
    },
    "deepseek_ocr2": {
        "text_config": {
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "num_experts_per_tok": 2, "head_dim": 16,
        },
        "vision_config": {
            "sam_config": {"downsample_channels": [48, 64], "output_channels": 32, "global_attn_indexes": [1]},
            "encoder_config": {"num_hidden_layers": 2},
        },
    },
    "deepseek_v2": {
        "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4,
    },
    "diffusion_gemma": {
        "text_config": {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 40, "global_head_dim": 32},
    },
    "dots1": {
        "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
        "max_window_layers": 2, "layer_types": ["full_attention", "full_attention", "sliding_attention",
        "sliding_attention"],
    },
    "dots3_note": {
        "text_config": _SWA,
        "vision_config": {
            "mlp_layer_types": ["dense", "sparse"], "per_layer_config": {1: {"num_local_experts": 4}},
            "adapter_in_dim": 32, "adapter_out_dim": 64,
        },
        "audio_config": {
            "adapter_input_size": 32, "adapter_out_dim": 64, "downsample_hidden_size": 8, "conv_output_size": 128,
        },
    },
    "dots3_note_text": _SWA,
    "emu3": {"vocabulary_map": {"<image>": 280, "<|visual token 000000|>": 281, "<|extra_200|>": 282},
    "vq_config": _VQ},
    "ernie4_5_vl_moe": {"text_config": {**_sections(4, 4, 4), "moe_intermediate_size": [40, 24], "head_dim": 24}},
    "esm": {"vocab_size": 320, "mask_token_id": 3, "pad_token_id": 0, "position_embedding_type": "rotary"},
    "esmc": {"num_key_value_heads": 4, "head_dim": 16},
    "florence2": {
        "vision_config": {
            "embed_dim": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_heads": [2, 2, 2, 2], "num_groups": [2, 2, 2, 2],
        },
    },
    "fsmt": {"src_vocab_size": 320, "tgt_vocab_size": 320},
    "funnel": {"block_sizes": [2, 1, 1], "num_decoder_layers": 2},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 128},
    "gemma3n": {"text_config": _GEMMA3N_TEXT},
    "gemma3n_text": _GEMMA3N_TEXT,
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_text": _GEMMA4,
    "gemma4_unified": {"text_config": _GEMMA4_UNIFIED},
    "gemma4_unified_text": _GEMMA4_UNIFIED,
    "glm46v": {"text_config": _sections(2, 3, 3)},
    "glm4v": {"text_config": _sections(2, 3, 3)},
    "glm4v_moe": {"text_config": {"rope_parameters": {"mrope_section": [2, 1, 1]}}},
    "glm_ocr": {"text_config": _sections(2, 3, 3)},
    "glmga": {"text_config": _sections(2, 3, 3)},
    "glm5_next": {"text_config": {"num_key_value_heads": 4, "qk_rope_head_dim": 0, "head_dim": 0, "index_kpool": 4}},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 2]], "attention_layers": ["global", "local", "global", "local"],
    },
    "granite4_vision": {
        "vision_config": {"hidden_size": 64}, "downsample_rate": "2/4",
        "qformer_config": {"hidden_size": 64, "encoder_hidden_size": 64},
        "deepstack_layer_map": [[-1, 0], [-2, 1]], "spatial_target_layers": [0, 1, 2, 3],
    },
    "granitemoehybrid": {**_MAMBA, "layer_types": _ATTENTION_AND_MAMBA},
    "helium": {"head_dim": 16},
    "hunyuan_vl": {"text_config": _sections(4, 4, 4) | {"head_dim": 24}},
    "jamba": {"attn_layer_period": 4, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "janus": {
        "vision_config": {"num_image_tokens": 16, "projection_dim": 64, "depth": 2},
        "vq_config": {**_VQ, "num_embeddings": 16, "projection_dim": 64, "image_token_embed_dim": 64, "num_patches": 4},
    },
    "jetmoe": {"kv_channels": 24},
    "laguna": {"num_attention_heads_per_layer": [4, 8, 4, 8]},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "lfm2_vl": {"text_config": {"layer_types": ["conv", "conv", "full_attention", "conv"], "num_hidden_layers": 4}},
    "llama4": {
        "text_config": {"interleave_moe_layer_step": 2, "attention_chunk_size": 8, "moe_layers": [1, 3]},
        "vision_config": {"projector_input_dim": 48, "projector_output_dim": 64, "vision_output_dim": 64},
    },
    "llama4_text": {"interleave_moe_layer_step": 2, "attention_chunk_size": 8, "moe_layers": [1, 3]},
    "longcat_flash": {"zero_expert_num": 4},
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 16},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 8},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "muse_glimmer": {"projector_hidden_size": 48},
    "muse_spark": {
        "audio_config": {"num_hidden_layers": 4, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    },
    "nemo_speechlm": {"audio_config": {"diarization_config": {"head_config": {"audio_hidden_size": 32}}}},
    "nemotron_h": _NEMOTRON_H,
    "nemotron_h_omni": {
        "text_config": _NEMOTRON_H, "projector_hidden_size": 48, "vision_hidden_size": 32,
        "vision_config": {"video_temporal_patch_size": 2, "patch_dim": 192, "video_patch_dim": 384},
    },
    "neomme": {"head_dim": 16},
    "paddleocr_vl": {"text_config": _sections(4, 4, 4)},
    "pegasus_x": {"block_size": 8},
    "perceiver": {
        "num_latents": 16, "d_latents": 64, "d_model": 48, "num_self_attends_per_block": 4,
        "num_self_attention_heads": 4, "num_cross_attention_heads": 4, "qk_channels": 32, "v_channels": 64,
        "max_position_embeddings": 64,
    },
    "qwen2_5_omni_thinker": {"text_config": _sections(2, 3, 3)},
    "qwen2_5_vl": {"text_config": _sections(2, 3, 3)},
    "qwen2_vl": {"text_config": _sections(2, 3, 3)},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "reformer": {
        "is_decoder": True, "attn_layers": ["local", "lsh", "local", "lsh"], "num_hidden_layers": 4, "num_buckets": 4,
        "axial_pos_embds": False, "attention_head_size": 24, "feed_forward_size": 112, "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8, "hash_seed": 0,
    },
    "roc_bert": {
        "pronunciation_vocab_size": 20, "shape_vocab_size": 20, "pronunciation_embed_dim": 16, "shape_embed_dim": 12,
    },
    "squeezebert": {"embedding_size": 64},
    "step3p7": {"text_config": {
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "mlp_layer_types": ["dense", "dense", "sparse", "sparse"], "num_hidden_layers": 4, "sliding_window": 8,
        "rope_parameters": {"full_attention": _FULL, "sliding_attention": _FULL}, "share_expert_dim": 40,
        "num_sliding_attention_heads": 6, "query_pre_attn_scalar": 24,
    }},
    "vibevoice_asr": {"semantic_tokenizer_encoder_config": _SOUND, "acoustic_tokenizer_encoder_config": _SOUND},
    "xlnet": {"d_head": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": _SHARED_BLOCKS, "num_hidden_layers": 5, "attention_hidden_size": 128,
        "attention_head_dim": 32, "num_key_value_heads": 4, "use_mamba_kernels": False,
    },
    "zamba2": {
        "layers_block_type": _SHARED_BLOCKS, "num_hidden_layers": 5, "attention_hidden_size": 128,
        "attention_head_dim": 32, "num_key_value_heads": 4, "use_mamba_kernels": False, "n_mamba_heads": 8,
        "mamba_headdim": 16, "mamba_ngroups": 2, "chunk_size": 8, "num_mem_blocks": 2, "adapter_rank": 12,
        "use_shared_attention_adapter": True,
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

# Why transformers itself cannot run a type on token ids alone, whatever is installed.
_IMAGE = "its forward pass needs an image"
NEEDS = {
    **dict.fromkeys(("blip", "blip-2", "idefics", "instructblip", "instructblipvideo", "kosmos-2"), _IMAGE),
    **dict.fromkeys(("pix2struct", "pp_formulanet", "vision-encoder-decoder"), _IMAGE),
    "voxtral_realtime": "its forward pass needs sound",
    "udop": "its forward pass needs the box of every token on a page",
    "pi0": "it gives a robot's actions, and needs an image and the robot's state",
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"),
        "it drafts for another model, and reads that model's hidden states, keys and values",
    ),
    "diffusion_gemma": "it denoises a block of tokens that it draws at random",
    "shieldgemma2": "what its class among the image-text ones saves, that class cannot read",
    **dict.fromkeys(("musicgen", "musicgen_melody"),
    "its decoder reads codes of sound; the text goes to another model"),
}  # fmt: skip
# Packages that transformers needs to build a type.
PACKAGES = {
    **dict.fromkeys(("fast_vlm", "gemma3n", "perception_lm"), ("PIL", "timm")),
    "inkling_mm_model": ("scipy",),
}

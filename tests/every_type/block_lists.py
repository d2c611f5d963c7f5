"""Where the blocks of each type lie by its own code: a list of modules, or one module that is called several times."""

_USUAL = "model.layers"
_LISTS = {
    "model.language_model.layers": """
        aria aya_vision cohere2_vision cohere_compass cosmos3_edge cosmos3_omni deepseek_ocr2 deepseek_vl
        deepseek_vl_hybrid dots3_note ernie4_5_vl_moe exaone4_5 fuyu gemma3 gemma4 gemma4_unified glm46v glm4v glm4v_moe
        glm5_next glm_ocr glmga got_ocr2 granite4_vision hunyuan_vl hyperclovax_vision_v2 inkling2 internvl janus
        kimi_k25
        lfm2_vl lfm3_vl lighton_ocr llava llava_next llava_next_video llava_onevision minicpm_ocr minicpmv4_6
        minicpmv4_7 minimax_m3_vl mistral3 mistral_large4 mllama molmo2 moss_transcribe_diarize muse_glimmer muse_spark
        ovis2 paddleocr_vl paligemma pp_chart2table qianfan_ocr qwen2_5_omni_thinker qwen2_5_vl qwen2_vl qwen3_5
        qwen3_5_moe qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe qwen4_exp step3p7 unlimited_ocr video_llama_3
        video_llava vipllava gemma3n fast_vlm perception_lm inkling_mm_model audioflamingo3 glmasr granite_speech
        granite_speech_plus musicflamingo nemo_speechlm qwen2_audio qwen3_asr vibevoice_asr voxtral voxtral_realtime
    """,
    "model.encoder.language_model.layers": "diffusion_gemma",
    "model.text_model.layers": "emu3 granite_docling idefics2 idefics3 modernvbert smolvlm ultravbert",
    "model.decoder.layers": "opt trocr whisper",
    "language_model.model.layers": "llama4 nemotron_h_omni",
    "text_model.model.layers": "kosmos-2.5 kosmos-2",
    "language_model.model.decoder.layers": "blip-2 instructblip instructblipvideo",
    "text_decoder.bert.encoder.layer": "blip",
    "transformer.h": "bloom codegen ctrl falcon gpt-sw3 gpt2 gpt_bigcode gpt_neo gptj openai-gpt",
    "transformer.blocks": "dbrx mpt",
    "transformer.layer": "xlnet",
    "transformer.encoder.layers": "squeezebert",
    "transformer.layer_norm2": "flaubert xlm",
    "bert.encoder.layer": "bert bert-generation big_bird megatron-bert",
    "roberta.encoder.layer": "camembert roberta xlm-roberta xlm-roberta-xl xmod",
    "roberta.layers": "jina_embeddings_v3",
    "deberta.encoder.layer": "deberta deberta-v2",
    "distilbert.transformer.layer": "distilbert",
    "data2vec_text.encoder.layer": "data2vec-text",
    "roberta_prelayernorm.encoder.layer": "roberta-prelayernorm",
    "albert.encoder.albert_layer_groups.0.albert_layers.0": "albert",
    "{}.encoder.layer": """
        convbert electra ernie esm fnet git ibert layoutlm longformer luke mobilebert mpnet mra nystromformer rembert
        roc_bert roformer tapas yoso
    """,
    "{}.encoder.layers": "cpmant reformer",
    "{}.layers": "biogpt esmc gpt_neox gpt_neox_japanese gte nomic_bert",
    "perceiver.encoder.self_attends": "perceiver",
    "backbone.layers": "falcon_mamba mamba mamba2",
    "backbone.blocks": "xlstm",
    "rwkv.blocks": "rwkv",
    "model.global_transformer.layers": "blt",
}
_SEVERAL = {
    "hrm_text": ["model.L_module.layers", "model.H_module.layers"],
    "funnel": [
        "funnel.encoder.blocks.0",
        "funnel.encoder.blocks.1",
        "funnel.encoder.blocks.2",
        "funnel.decoder.layers",
    ],
}
_ENCODER_DECODERS = {
    "florence2": ("model.language_model.encoder.layers", "model.language_model.decoder.layers"),
    "encoder-decoder": ("encoder.encoder.layer", "decoder.bert.encoder.layer"),
    "led": ("led.encoder.layers", "led.decoder.layers"),
    **dict.fromkeys(("seamless_m4t", "seamless_m4t_v2"), ("text_encoder.layers", "text_decoder.layers")),
    **dict.fromkeys(("longt5", "mt5", "switch_transformers", "t5", "umt5"), ("encoder.block", "decoder.block")),
    "prophetnet": ("prophetnet.encoder.layers", "prophetnet.decoder.layers"),
    "t5gemma2": ("model.encoder.text_model.layers", "model.decoder.layers"),
}
_AT = {name: path.format(name) for path, names in _LISTS.items() for name in names.split()}


def block_paths(name: str, part: str | None) -> list[str]:
    """Paths of the lists, or the modules, whose calls are the blocks of a type (of `part`, encoder or decoder)."""
    if part:
        encoder, decoder = _ENCODER_DECODERS.get(name, ("model.encoder.layers", "model.decoder.layers"))
        return [encoder if part == "encoder" else decoder]
    return _SEVERAL.get(name) or [_AT.get(name, _USUAL)]

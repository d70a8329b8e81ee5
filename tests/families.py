"""Tiny configurations of the families of models that are measured."""

from __future__ import annotations

from typing import Any

import transformers

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 89,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FEW_HEADS = {**SIZES, "num_key_value_heads": 2}
OLD_SIZES = {"n_layer": 3, "n_head": 4, "vocab_size": 89, "bos_token_id": 1, "eos_token_id": 2}

DENSE: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**FEW_HEADS),
    "llama-tied-bias": transformers.LlamaConfig(
        **FEW_HEADS, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "gpt2": transformers.GPT2Config(**OLD_SIZES, n_embd=32, n_positions=64),
    "qwen2": transformers.Qwen2Config(**FEW_HEADS),
    "mistral": transformers.MistralConfig(**FEW_HEADS, sliding_window=5),
    "gemma2": transformers.Gemma2Config(
        **FEW_HEADS, head_dim=8, sliding_window=5, final_logit_softcapping=3.0
    ),
    "qwen3": transformers.Qwen3Config(**FEW_HEADS, head_dim=8),
    "phi3": transformers.Phi3Config(**FEW_HEADS),
    "gemma3": transformers.Gemma3TextConfig(**FEW_HEADS, head_dim=8, sliding_window=5),
    "gpt-neox": transformers.GPTNeoXConfig(**SIZES),
    "phi": transformers.PhiConfig(**SIZES),
    "cohere": transformers.CohereConfig(**FEW_HEADS, logit_scale=0.25),
    "granite": transformers.GraniteConfig(**FEW_HEADS, logits_scaling=4.0),
    "opt": transformers.OPTConfig(
        hidden_size=32,
        ffn_dim=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=89,
        max_position_embeddings=64,
        word_embed_proj_dim=16,
    ),
    "bloom": transformers.BloomConfig(**OLD_SIZES, hidden_size=32),
    "falcon": transformers.FalconConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=89,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gemma": transformers.GemmaConfig(**FEW_HEADS, head_dim=8),
    "olmo2": transformers.Olmo2Config(**FEW_HEADS),
    "smollm3": transformers.SmolLM3Config(**FEW_HEADS),
    "stablelm": transformers.StableLmConfig(**FEW_HEADS),
    "glm4": transformers.Glm4Config(**FEW_HEADS, head_dim=8),
    "starcoder2": transformers.Starcoder2Config(**FEW_HEADS),
    "cohere2": transformers.Cohere2Config(**FEW_HEADS, sliding_window=5),
    "gptj": transformers.GPTJConfig(**OLD_SIZES, n_embd=32, n_positions=64, rotary_dim=4),
    "gpt-bigcode": transformers.GPTBigCodeConfig(**OLD_SIZES, n_embd=32, n_positions=64),
    "mpt": transformers.MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=64, vocab_size=89),
}

_EXPERTS = {**FEW_HEADS, "moe_intermediate_size": 24, "num_experts_per_tok": 2}
_LATENT = {
    **_EXPERTS,
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
}
_LINEAR_ATTENTION = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

EXPERTS: dict[str, Any] = {
    "mixtral": transformers.MixtralConfig(**FEW_HEADS, num_local_experts=4),
    "qwen2-moe": transformers.Qwen2MoeConfig(
        **_EXPERTS, num_experts=5, shared_expert_intermediate_size=20
    ),
    "qwen3-moe": transformers.Qwen3MoeConfig(**_EXPERTS, head_dim=8, num_experts=5),
    "olmoe": transformers.OlmoeConfig(**FEW_HEADS, num_experts=5, num_experts_per_tok=2),
    "deepseek-v3": transformers.DeepseekV3Config(
        **_LATENT,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        n_shared_experts=1,
        first_k_dense_replace=1,
    ),
    "gpt-oss": transformers.GptOssConfig(
        **FEW_HEADS, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=5
    ),
    "granite-moe": transformers.GraniteMoeConfig(
        **FEW_HEADS, num_local_experts=4, num_experts_per_tok=2
    ),
    "jetmoe": transformers.JetMoeConfig(
        **SIZES | {"num_attention_heads": None},
        kv_channels=8,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "phimoe": transformers.PhimoeConfig(**FEW_HEADS, num_local_experts=4, num_experts_per_tok=2),
    "glm4-moe": transformers.Glm4MoeConfig(
        **_EXPERTS, head_dim=8, n_routed_experts=4, first_k_dense_replace=1
    ),
    "ernie4.5-moe": transformers.Ernie4_5_MoeConfig(
        **FEW_HEADS,
        moe_intermediate_size=24,
        moe_num_experts=4,
        moe_k=2,
        moe_layer_start_index=1,
    ),
}
"""Mixtures of experts."""
if hasattr(transformers, "Qwen3NextConfig"):  # since 4.57
    EXPERTS["qwen3-next"] = transformers.Qwen3NextConfig(
        **_EXPERTS | {"num_hidden_layers": 4},
        **_LINEAR_ATTENTION,
        head_dim=8,
        num_experts=4,
        shared_expert_intermediate_size=16,
    )

HYBRID: dict[str, Any] = {
    "mamba2": transformers.Mamba2Config(
        hidden_size=32,
        num_hidden_layers=2,
        vocab_size=89,
        state_size=4,
        num_heads=8,
        head_dim=8,
        n_groups=1,
        chunk_size=8,
    ),
    "falcon-h1": transformers.FalconH1Config(
        **FEW_HEADS,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=4,
        mamba_chunk_size=8,
    ),
    "lfm2": transformers.Lfm2Config(**FEW_HEADS, layer_types=["conv", "full_attention", "conv"]),
}
"""State spaces and convolutions; it is their linear layers that are measured."""

REFUSED: dict[str, Any] = {
    "mamba": transformers.MambaConfig(
        hidden_size=32, num_hidden_layers=2, vocab_size=89, state_size=4
    ),
    "jamba": transformers.JambaConfig(
        **FEW_HEADS,
        num_experts=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=4,
    ),
    "llama4": transformers.Llama4TextConfig(
        **FEW_HEADS,
        head_dim=8,
        intermediate_size_mlp=40,
        num_local_experts=4,
        num_experts_per_tok=1,
        attention_chunk_size=32,
    ),
}
"""Those whose gradients cannot be read off their layers."""

UNSPLIT: set[str] = set()
"""Those whose logits are always computed whole."""

if int(transformers.__version__.split(".")[0]) < 5:
    del EXPERTS["jetmoe"], REFUSED["jamba"]  # cannot be built from this, or run on a CPU
    del REFUSED["mamba"]  # calls the layer whose weight 5.x reads
    REFUSED["gpt-oss"] = EXPERTS.pop("gpt-oss")  # its experts are no linear layers
    UNSPLIT.add("gemma3")  # does not say which part its body is

CONFIGS = DENSE | EXPERTS | HYBRID | REFUSED

"""A diffusion U-Net's adapter: cross-attention and convolutions, of a tiny random configuration."""

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model

from stablerank.adapters.export import base_fingerprint
from stablerank.compression.compress import compress, load_compressed
from stablerank.compression.spec import CompressionSpec

CONFIG = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "proj_in", "time_emb_proj"]


def test_adapters_of_a_unet_return(tmp_path):
    torch.manual_seed(0)
    UNet2DConditionModel(**CONFIG).save_pretrained(tmp_path / "unet")

    def load():
        return UNet2DConditionModel.from_pretrained(tmp_path / "unet")

    tuned = get_peft_model(load(), LoraConfig(r=4, target_modules=TARGETS))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    tuned.eval().save_pretrained(tmp_path / "adapter")
    inputs = torch.randn(1, 4, 8, 8), torch.tensor(3), torch.randn(1, 5, 24)
    with torch.no_grad():
        right = tuned(*inputs).sample
        effect = (right - load().eval()(*inputs).sample).norm()
        for bits, lost in ((8, 0.05), (4, 0.5)):
            done = compress(tmp_path / "adapter", tmp_path / str(bits), CompressionSpec(bits=bits))
            assert (load_compressed(done.file, load()).eval()(*inputs).sample - right).norm() < lost * effect
    assert done.account.file == done.file.stat().st_size
    assert base_fingerprint(tuned)

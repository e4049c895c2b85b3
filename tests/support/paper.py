"""Figures of the paper."""

# Table 4, "max memory in GB allocated" (the log divides by 2^30): long, short, simplest LSG, LSG. xFormers and FlashAttention
# never write a softmax out; LSG ran without EMA on the RTX cards.
TABLE_4 = {
    "a5000-fp16": (22.9, 22.9, 22.6, 22.0),
    "a6000-fp32": (45.7, 45.7, 45.0, 45.8),
    "h100-fp16, eager": (55.8, 55.8, 47.7, 63.9),
    "h100-fp16": (32.3, 32.2, 29.2, 35.2),
    "h100-fp32": (58.9, 57.4, 53.4, 62.9),
}

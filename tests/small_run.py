"""Parameters with which the whole chain runs in a minute or two: few patients, few steps, nothing learnt."""

TRAINING = {"epochs": 1, "batch_size": 16}
SMALL = {
    "ingest": {"image_size": 32, "options": {"patients": 240, "pixels": 32}},
    "base_models": {"image_size": 32, "clip_steps": 2, "llava_steps": 2, "pictures": 64},
    "stage1": TRAINING,
    "stage2": TRAINING,
    "fair_moe": {**TRAINING, "group_batch": 8, "init_from": "base"},
}

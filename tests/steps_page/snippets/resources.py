from treadle import step

@step(resources={"cpu": "4", "memory": "16Gi"})
def on_cores():
    ...

@step(resources={"gpu": "nvidia-tesla-v100", "gpu_count": 2})
def on_cards():
    ...

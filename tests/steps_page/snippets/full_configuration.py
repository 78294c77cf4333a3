from treadle import step

@step(
    inputs=["orders"],
    outputs=["fitted"],
    cache="input_hash",
    retry=3,
    timeout=3600,
    resources={"gpu": 1, "memory": "16Gi"}
)
def fit(orders, rate_of_change: float):
    model = train(orders, lr=rate_of_change)
    return model

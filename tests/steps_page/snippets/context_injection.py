from treadle import Pipeline, context, step

ctx = context(
    rate_of_change=0.001,
    rounds=100,
    batch=32
)

@step(outputs=["model"])
def train(data, rate_of_change: float, rounds: int):
    print(f"Training with lr={rate_of_change} for {rounds} rounds")
    return fitted

pipeline = Pipeline("training", context=ctx)

from treadle import step

@step(outputs=["split"])
def halve(data, share=0.2): ...

@step(inputs=["split"], outputs=["model"])
def fit(split): ...

@step(outputs=["model"])
def everything_at_once(data):
    split = halve(data)
    model = fit(split)
    metrics = judge(model)
    return model, metrics

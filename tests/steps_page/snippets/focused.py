from treadle import step

@step(outputs=["gapless_rows"])
def tidy(raw):
    ...

@step(inputs=["gapless_rows"], outputs=["measures"])
def measured(gapless_rows):
    ...

@step
def all_in_one(raw):
    gapless_rows = clean(raw)
    measures = engineer(gapless_rows)
    model = train(measures)
    return model

from treadle import Pipeline, step

@step(outputs=["data"])
def load():
    return [1, 2, 3, 4, 5]

@step(inputs=["data"], outputs=["tidied"])
def process(data):
    return [x * 2 for x in data]

pipeline = Pipeline("etl")
pipeline.add_step(load)
pipeline.add_step(process)

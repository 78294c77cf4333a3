from treadle import step

@step(inputs=["rows"], outputs=["tidy"])
def clean(rows):
    return process(rows)

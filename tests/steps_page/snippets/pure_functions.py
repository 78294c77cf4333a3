from treadle import step

@step(outputs=["tidied"])
def tidy(rows):
    return rows.dropna().reset_index(drop=True)

@step
def tidy_what_lies_around():
    global lying_around
    lying_around = lying_around.dropna()
    return lying_around

from treadle import step, Model, Dataset

@step
def fit(data: pd.DataFrame) -> Model:
    return Model(fitted_object, name="sorter")

@step
def numbers() -> Dataset:
    return Dataset(df, name="rows")

from treadle import step

@step(inputs=["measures"], outputs=["guesses"])
def guess(measures: pd.DataFrame, bound: float = 0.5) -> pd.Series:
    """Say for each row whether it is above the bound."""
    ...

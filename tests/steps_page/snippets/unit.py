def test_tidy():
    raw = pd.DataFrame({"a": [1, None, 3]})

    result = tidy(raw)

    assert result["a"].isnull().sum() == 0
    assert len(result) == 2

def test_fit():
    X = np.random.rand(100, 10)
    y = np.random.rand(100)

    model = fit(X, y, rate_of_change=0.01, rounds=10)

    assert model is not None
    assert hasattr(model, 'guess')

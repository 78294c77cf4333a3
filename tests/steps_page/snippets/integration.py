def test_two_steps_together():
    from treadle import Pipeline, context

    ctx = context(rate_of_change=0.01)
    pipeline = Pipeline("two_steps", context=ctx)
    pipeline.add_step(numbers)
    pipeline.add_step(fit)

    result = pipeline.run()

    assert result.success
    assert "model" in result.outputs

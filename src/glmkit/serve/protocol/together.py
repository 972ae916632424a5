"""Fields that are fine alone and say nothing, or two things, together."""

from .sampling import Answering, Writing


def clash(body: Writing) -> tuple[str, str] | None:
    """(field, what is wrong with it beside the others), None when all go together."""
    beams = isinstance(body, Answering) and (body.num_beams or 1) > 1
    checks = [
        ("stream_options", body.stream_options is not None and not body.stream, "it needs stream: true"),
    ]
    if isinstance(body, Answering):
        checks += [
            ("num_beams", beams and bool(body.stream), "beams are known only at the end; leave out stream"),
            ("length_penalty", not beams and body.length_penalty is not None, "it needs num_beams of 2 or more"),
            ("early_stopping", not beams and body.early_stopping is not None, "it needs num_beams of 2 or more"),
            ("stop", beams and bool(body.stop), "it does not go with num_beams; leave one out"),
            ("temperature", beams and bool(body.temperature), "it does not go with num_beams, for beams are greedy"),
            ("prompt_lookup", beams and bool(body.prompt_lookup), "it does not go with num_beams; leave one out"),
            ("n", beams and (body.n or 1) > (body.num_beams or 1), f"it is {body.n}, more than num_beams; lower it"),
        ]
    return next(((name, reason) for name, wrong, reason in checks if wrong), None)

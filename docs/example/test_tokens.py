"""The projection as given, when, then: `pytest` in this folder."""

from projector_tokens import TokensPerDay

from session_projector.testing import created, event, given


def used(project: str, read: int, written: int) -> dict[str, object]:
    return event("tokens_used", "A-1", {"project": project, "input": read, "output": written})


def test_tokens_are_summed_by_project_and_day() -> None:
    given(created("A-1"), used("web", 1200, 350), used("api", 10, 20)).when(
        used("web", 800, 50)
    ).expect(
        TokensPerDay(),
        {
            "2023-11-14/web": {"project": "web", "input": 2000, "output": 400},
            "2023-11-14/api": {"project": "api", "input": 10, "output": 20},
        },
        skipped=1,
    )


def test_an_event_without_a_number_is_quarantined() -> None:
    given(event("tokens_used", "A-1", {"project": "web", "input": "many"})).expect(
        TokensPerDay(), {}, quarantined={1: "input is missing or not of type int"}
    )

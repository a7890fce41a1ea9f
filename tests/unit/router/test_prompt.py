"""Passages in prompts: fenced, numbered, in a stable order."""

from hypothesis import given
from hypothesis import strategies as st

from services.router.domain.prompt import assemble, assemble_text, fence, number, search_query
from services.router.domain.request import Message, Retrieval, Role
from tests.unit.router.factories import passage, request, user

SYSTEM = Message(role=Role.SYSTEM, content="Be brief.")
ANSWER = Message(role=Role.ASSISTANT, content="Yes.")


def test_the_order_is_that_of_the_documents_not_of_the_scores() -> None:
    """The same passages make the same prefix, however a search ranks them."""
    passages = [passage("b", score=9.0), passage("a", start=5, score=1.0), passage("a", start=1, score=2.0)]
    forwards, backwards = number(passages), number(list(reversed(passages)))
    assert forwards == backwards
    assert [(p.mark, p.document_id, p.start) for p in forwards] == [(1, "a", 1), (2, "a", 5), (3, "b", 0)]
    assert fence(forwards) == fence(backwards)


def test_passages_stand_before_the_last_question() -> None:
    """What came before is untouched, so that its cache still fits."""
    messages = (SYSTEM, user("First?"), ANSWER, user("Second?"), ANSWER)
    assembled = assemble(messages, number([passage(text="fact")]))
    assert assembled[:3] == messages[:3]
    assert assembled[4] == ANSWER
    assert assembled[3].content.startswith(fence(number([passage(text="fact")])))
    assert assembled[3].content.endswith("\n\nSecond?")


def test_without_a_user_message_the_passages_are_one() -> None:
    """They still come after the system text."""
    assembled = assemble((SYSTEM,), number([passage()]))
    assert [message.role for message in assembled] == [Role.SYSTEM, Role.USER]


def test_without_passages_nothing_changes() -> None:
    """An empty search leaves no empty fence."""
    assert assemble((SYSTEM, user()), ()) == (SYSTEM, user())
    assert assemble_text("raw", ()) == "raw"


def test_a_raw_prompt_follows_its_passages() -> None:
    """The question comes last here, too."""
    text = assemble_text("raw", number([passage(text="fact")]))
    assert text.index("fact") < text.index("raw")
    assert text.endswith("</passages>\n\nraw")


@given(st.text(alphabet=st.sampled_from('<>/ passge\n"&=1PASG'), max_size=60), st.text(max_size=20))
def test_no_passage_leaves_its_fence(text: str, title: str) -> None:
    """Whatever a document says, there is one opening and one closing mark for each passage."""
    fenced = fence(number([passage("a", text=text, title=title), passage("b")])).lower()
    assert fenced.count("<passage mark=") == 2
    assert fenced.count("</passage>") == 2
    assert fenced.count("</passages>") == 1
    assert fenced.rstrip().endswith("</passages>")


def test_the_title_cannot_end_its_attribute() -> None:
    """Quotes and line ends of a title are harmless."""
    fenced = fence(number([passage(title='x"\n mark="9')]))
    assert 'title="x&quot; mark=&quot;9"' in fenced


def test_what_is_searched_for() -> None:
    """The query if there is one, else the last user message, else the raw prompt; cut to the limit of a query."""
    retrieval = Retrieval(collections=("c",))
    conversation = (user("First?"), ANSWER, user("Second?"), ANSWER)
    assert search_query(request(messages=conversation, retrieval=retrieval)) == "Second?"
    named = Retrieval(collections=("c",), query="named")
    assert search_query(request(messages=conversation, retrieval=named)) == "named"
    assert search_query(request(messages=(), prompt="raw", retrieval=retrieval)) == "raw"
    assert search_query(request(messages=(user("ü" * 5000),), retrieval=retrieval)) == "ü" * 4096

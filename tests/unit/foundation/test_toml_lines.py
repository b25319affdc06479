from agent.foundation.toml_lines import line_of, positions

TEXT = '''\
top = 1
# name = "commented"
[site] # a [comment]
name = "a = [b"
"quoted key" = 1
text = """
inner = 3
[not.a.header]
"""
list = [
  # bracket ] in a comment
  "]",
  1,
]
after = true
[datasets . "mnist"]
path.deep = 1
[[array]]
x = 1
'''


def test_keys_and_headers_are_found_on_their_lines() -> None:
    assert positions(TEXT) == {
        ("top",): 1,
        ("site",): 3,
        ("site", "name"): 4,
        ("site", "quoted key"): 5,
        ("site", "text"): 6,
        ("site", "list"): 10,
        ("site", "after"): 15,
        ("datasets", "mnist"): 16,
        ("datasets", "mnist", "path", "deep"): 17,
        ("array",): 18,
        ("array", "x"): 19,
    }


def test_a_key_that_cannot_be_placed_takes_the_line_of_its_table() -> None:
    lines = positions("\n[site]\nname = {first = 1}\n")
    assert line_of(lines, ("site", "name", "first")) == 3
    assert line_of(lines, ("site", "unknown")) == 2
    assert line_of(lines, ("elsewhere",)) is None

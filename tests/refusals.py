"What every refusal must be, whichever file or parameter it is about."

import pytest

from ddrobust_nb.foundations.core import InputError


def sentence(call):
    "The one sentence by which a call refuses"
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and 20 < len(text) < 900, text
    return text

"""Chat templates in the form that model families ship them, shortened, on a tokenizer of bytes.

Each says what a prompt, an answer and a conversation of several turns must be, written by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests import tiny


@dataclass(frozen=True)
class Family:
    """template: Jinja. special, words: added tokens that are special, and those that are not.
    prompt: of ``Hi``; system: of a system turn ``Be brief`` and ``Hi``; long: of ``Hi``, the answer
    ``Yo`` and ``Bye``; answer: what is trained of ``Blue.``.
    """

    template: str
    eos: str
    prompt: str
    system: str
    long: str
    answer: str
    bos: str | None = None
    adds_bos: bool = False
    special: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def tokenizer(self) -> Any:
        """A byte-level tokenizer with the family's tokens and template."""
        made = tiny.byte_tokenizer(self.bos, self.eos, self.special, adds_bos=self.adds_bos)
        made.add_tokens(list(self.words))
        made.chat_template = self.template
        return made


def _turns(head: str, tail: str, last: str) -> str:
    """A template that writes every turn alike."""
    loop = "{% for m in messages %}" + head + "{{ m['content'] }}" + tail + "{% endfor %}"
    return loop + "{% if add_generation_prompt %}" + last + "{% endif %}"


_SMOL = "<|im_start|>system\nYou help.<|im_end|>\n"
_LLAMA = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
_LLAMA_OPEN = "<|start_header_id|>assistant<|end_header_id|>\n\n"
_LLAMA_DAY = "<|begin_of_text|>" + _LLAMA.format("system", "Today Date: 26 Jul 2024\n\n{}")
_GRANITE = "<|start_of_role|>{}<|end_of_role|>{}<|end_of_text|>\n"
_GRANITE_OPEN = "<|start_of_role|>assistant<|end_of_role|>"
_GRANITE_DAY = _GRANITE.format("system", "Today's Date: July 26, 2024. You help.")
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

FAMILIES: dict[str, Family] = {
    "smollm2": Family(
        "{% if messages[0]['role'] != 'system' %}{{ '" + _SMOL.replace("\n", "\\n") + "' }}"
        "{% endif %}"
        + _turns(
            "{{ '<|im_start|>' + m['role'] + '\\n' }}",
            "{{ '<|im_end|>\\n' }}",
            "{{ '<|im_start|>assistant\\n' }}",
        ),
        eos="<|im_end|>",
        bos="<|im_start|>",
        prompt=f"{_SMOL}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        system="<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n",
        long=f"{_SMOL}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        answer="Blue.<|im_end|>",
    ),
    "llama-3": Family(
        tiny.LLAMA3,
        eos="<|end_of_text|>",
        bos="<|begin_of_text|>",
        adds_bos=True,
        special=_HEADERS,
        prompt=f"<|begin_of_text|>{_LLAMA.format('user', 'Hi')}{_LLAMA_OPEN}",
        system=f"<|begin_of_text|>{_LLAMA.format('system', 'Be brief')}"
        f"{_LLAMA.format('user', 'Hi')}{_LLAMA_OPEN}",
        long=f"<|begin_of_text|>{_LLAMA.format('user', 'Hi')}{_LLAMA.format('assistant', 'Yo')}"
        f"{_LLAMA.format('user', 'Bye')}{_LLAMA_OPEN}",
        answer="Blue.<|eot_id|>",
    ),
    "llama-3.2": Family(
        "{{- bos_token }}\n"
        "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}"
        "{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}\n"
        "{%- if messages[0]['role'] == 'system' %}"
        "{%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}"
        "{%- else %}{%- set system = '' %}{%- endif %}\n"
        "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string"
        " + '\\n\\n' + system + '<|eot_id|>' }}\n"
        "{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n'"
        " + m['content'] | trim + '<|eot_id|>' }}{%- endfor %}\n"
        "{%- if add_generation_prompt %}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}",
        eos="<|eot_id|>",
        bos="<|begin_of_text|>",
        adds_bos=True,
        special=_HEADERS,
        prompt=f"{_LLAMA_DAY.format('')}{_LLAMA.format('user', 'Hi')}{_LLAMA_OPEN}",
        system=f"{_LLAMA_DAY.format('Be brief')}{_LLAMA.format('user', 'Hi')}{_LLAMA_OPEN}",
        long=f"{_LLAMA_DAY.format('')}{_LLAMA.format('user', 'Hi')}"
        f"{_LLAMA.format('assistant', 'Yo')}{_LLAMA.format('user', 'Bye')}{_LLAMA_OPEN}",
        answer="Blue.<|eot_id|>",
    ),
    "mistral": Family(
        "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}"
        "{% set messages = messages[1:] %}{% endif %}{{ bos_token }}{% for m in messages %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if m['role'] == 'user' %}{{ ' [INST] ' + (s + '\\n\\n' if loop.first and s else '')"
        " + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
        eos="</s>",
        bos="<s>",
        adds_bos=True,
        prompt="<s> [INST] Hi [/INST]",
        system="<s> [INST] Be brief\n\nHi [/INST]",
        long="<s> [INST] Hi [/INST] Yo</s> [INST] Bye [/INST]",
        answer=" Blue.</s>",
    ),
    "gemma": Family(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        eos="<eos>",
        bos="<bos>",
        adds_bos=True,
        special=("<start_of_turn>", "<end_of_turn>"),
        prompt="<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
        system="<bos><start_of_turn>user\nBe brief\n\nHi<end_of_turn>\n<start_of_turn>model\n",
        long="<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYo<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
        answer="Blue.<end_of_turn>",
    ),
    "phi-3-mini": Family(
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ '<|user|>\\n' + m['content'] + '<|end|>\\n<|assistant|>\\n' }}"
        "{% elif m['role'] == 'assistant' %}{{ m['content'] + '<|end|>\\n' }}{% endif %}"
        "{% endfor %}",
        eos="<|endoftext|>",
        bos="<s>",
        special=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        prompt="<s><|user|>\nHi<|end|>\n<|assistant|>\n",
        system="<s><|user|>\nBe brief\n\nHi<|end|>\n<|assistant|>\n",
        long="<s><|user|>\nHi<|end|>\n<|assistant|>\nYo<|end|>\n<|user|>\nBye<|end|>\n"
        "<|assistant|>\n",
        answer="Blue.<|end|>",
    ),
    "phi-4-mini": Family(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}"
        "{% else %}{{ eos_token }}{% endif %}",
        eos="<|endoftext|>",
        special=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        prompt="<|user|>Hi<|end|><|assistant|>",
        system="<|system|>Be brief<|end|><|user|>Hi<|end|><|assistant|>",
        long="<|user|>Hi<|end|><|assistant|>Yo<|end|><|user|>Bye<|end|><|assistant|>",
        answer="Blue.<|end|>",
    ),
    "qwen3": Family(
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
        "{% set text = m['content'] %}{% set thought = '' %}"
        "{% if m['role'] == 'assistant' and '</think>' in text %}"
        "{% set thought = text.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
        "{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\\n' }}"
        "{% if m['role'] == 'assistant' and loop.index0 > ns.last %}"
        "{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}{{ text + '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}"
        "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}",
        eos="<|im_end|>",
        special=("<|im_start|>", "<|endoftext|>"),
        words=("<think>", "</think>"),
        prompt="<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        system="<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n",
        long="<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        answer="<think>\n\n</think>\n\nBlue.<|im_end|>",
    ),
    "zephyr": Family(
        tiny.ZEPHYR,
        eos="</s>",
        bos="<s>",
        adds_bos=True,
        prompt="<s><|user|>\nHi</s>\n<|assistant|>\n",
        system="<s><|system|>\nBe brief</s>\n<|user|>\nHi</s>\n<|assistant|>\n",
        long="<s><|user|>\nHi</s>\n<|assistant|>\nYo</s>\n<|user|>\nBye</s>\n<|assistant|>\n",
        answer="Blue.</s>",
    ),
    "deepseek": Family(
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
        "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
        "{% else %}{% set text = m['content'] %}{% if '</think>' in text %}"
        "{% set text = text.split('</think>')[-1] %}{% endif %}"
        "{{ '<｜Assistant｜>' + text + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}",
        eos="<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        adds_bos=True,
        special=("<｜User｜>", "<｜Assistant｜>"),
        words=("<think>", "</think>"),
        prompt="<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>",
        system="<｜begin▁of▁sentence｜>Be brief<｜User｜>Hi<｜Assistant｜>",
        long="<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>Yo<｜end▁of▁sentence｜>"
        "<｜User｜>Bye<｜Assistant｜>",
        answer="Blue.<｜end▁of▁sentence｜>",
    ),
    "granite": Family(
        "{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] %}"
        '{% set messages = messages[1:] %}{% else %}{% set said = "Today\'s Date: "'
        " + strftime_now('%B %d, %Y') + '. You help.' %}{% endif %}"
        "{{ '<|start_of_role|>system<|end_of_role|>' + said + '<|end_of_text|>\\n' }}"
        + _turns(
            "{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' }}",
            "{{ '<|end_of_text|>\\n' }}",
            "{{ '<|start_of_role|>assistant<|end_of_role|>' }}",
        ),
        eos="<|end_of_text|>",
        bos="<|end_of_text|>",
        special=("<|start_of_role|>", "<|end_of_role|>"),
        prompt=f"{_GRANITE_DAY}{_GRANITE.format('user', 'Hi')}{_GRANITE_OPEN}",
        system=f"{_GRANITE.format('system', 'Be brief')}{_GRANITE.format('user', 'Hi')}"
        f"{_GRANITE_OPEN}",
        long=f"{_GRANITE_DAY}{_GRANITE.format('user', 'Hi')}{_GRANITE.format('assistant', 'Yo')}"
        f"{_GRANITE.format('user', 'Bye')}{_GRANITE_OPEN}",
        answer="Blue.<|end_of_text|>",
    ),
}

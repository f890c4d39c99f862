"""The conversation format of tokenizers trained here: MiniMind-3's, written anew as a Jinja template.

    from minimind.tokenizer import load_tokenizer
    load_tokenizer().render_chat([{"role": "user", "content": "Hi"}])      # renders CHAT_TEMPLATE

It renders every conversation to the same text as upstream's template (jingyaogong/minimind at d65ef2c, model/
tokenizer_config.json), which the tests check wherever that file is at hand. Transformers reads it from
tokenizer_config.json. Variables: messages, tools, add_generation_prompt, open_thinking.
"""

CHAT_TEMPLATE = r"""
{#- MiniMind-3's conversation format. `turn` frames one speaker; tool results travel in user turns. -#}
{%- macro turn(role, body) -%}
    {{- '<|im_start|>' ~ role ~ '\n' ~ body ~ '<|im_end|>\n' -}}
{%- endmacro -%}

{%- macro text(message) -%}
    {%- if message.content is string -%}{{- message.content -}}{%- endif -%}
{%- endmacro -%}

{%- macro call(request) -%}
    {%- set target = request.function or request -%}
    {{- '<tool_call>\n{"name": "' ~ target.name ~ '", "arguments": ' -}}
    {%- if target.arguments is string -%}
        {{- target.arguments -}}
    {%- else -%}
        {{- target.arguments | tojson -}}
    {%- endif -%}
    {{- '}\n</tool_call>' -}}
{%- endmacro -%}

{%- macro answer(message) -%}
    {%- set said = text(message) -%}
    {%- set thought = '' -%}
    {%- if message.reasoning_content is string -%}
        {%- set thought = message.reasoning_content -%}
    {%- elif '</think>' in said -%}
        {%- set pieces = said.split('</think>') -%}
        {%- set thought = pieces[0].split('<think>')[-1] -%}
        {%- set said = pieces[-1].lstrip('\n') -%}
    {%- endif -%}
    {{- '<think>\n' ~ thought.strip('\n') ~ '\n</think>\n\n' ~ said.lstrip('\n') -}}
    {%- for request in message.tool_calls or [] -%}
        {%- if said or not loop.first -%}{{- '\n' -}}{%- endif -%}
        {{- call(request) -}}
    {%- endfor -%}
{%- endmacro -%}

{%- set opening = messages[0] if messages[0].role == 'system' else none -%}
{%- if tools -%}
    {%- set ns = namespace(manual='') -%}
    {%- for tool in tools -%}
        {%- set ns.manual = ns.manual ~ '\n' ~ (tool | tojson) -%}
    {%- endfor -%}
    {{- turn('system',
        (opening.content ~ '\n\n' if opening else '')
        ~ '# Tools\n\nYou may call one or more functions to assist with the user query.\n\n'
        ~ 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>' ~ ns.manual
        ~ '\n</tools>\n\n'
        ~ 'For each function call, return a json object with function name and arguments '
        ~ 'within <tool_call></tool_call> XML tags:\n<tool_call>\n'
        ~ '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>') -}}
{%- elif opening -%}
    {{- turn('system', opening.content) -}}
{%- endif -%}

{%- for message in messages -%}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) -%}
        {{- turn(message.role, text(message)) -}}
    {%- elif message.role == 'assistant' -%}
        {{- turn('assistant', answer(message)) -}}
    {%- elif message.role == 'tool' -%}
        {%- if loop.first or loop.previtem.role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
        {{- '\n<tool_response>\n' ~ text(message) ~ '\n</tool_response>' -}}
        {%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\n' -}}{%- endif -%}
    {%- endif -%}
{%- endfor -%}

{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n<think>\n' -}}
    {%- if open_thinking is not true -%}{{- '\n</think>\n\n' -}}{%- endif -%}
{%- endif -%}
""".lstrip()

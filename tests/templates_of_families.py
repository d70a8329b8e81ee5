"""Small chat templates in the styles of model families, with marks around what is generated.

Written for these tests. Without the marks they are what models ship; with them they say what has
to carry loss.
"""

from __future__ import annotations

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\nTools:' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {{- message.content }}
        {%- for tool_call in message.tool_calls or [] %}
            {{- '<tool_call>' + (tool_call.function | tojson) + '</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- elif message.role == 'tool' %}
        {%- if messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>' + message.content + '</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA = """\
{{- bos_token }}
{%- set date = strftime_now('%d %b %Y') if strftime_now is defined else '1 Jan 2000' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date + '\\n\\n' }}
{{- system_message + '<|eot_id|>' }}
{%- for message in messages %}
    {%- set role = 'ipython' if message.role == 'tool' else message.role %}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
    {%- if role == 'assistant' %}
        {%- generation %}
        {%- if 'tool_calls' in message %}
            {%- if message.tool_calls | length != 1 %}
                {{- raise_exception('one call at once') }}
            {%- endif %}
            {{- '{"name": "' + message.tool_calls[0].function.name + '", "parameters": ' }}
            {{- message.tool_calls[0].function.arguments | tojson }}
            {{- '}' }}
        {%- else %}
            {{- message.content | trim }}
        {%- endif %}
        {{- '<|eot_id|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

THINKING = """\
{%- set ns = namespace(last_query=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set ns.last_query = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set thought = message.reasoning_content or '' %}
        {%- if not thought and '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
        {%- if loop.index0 > ns.last_query %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content + '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {{ raise_exception('System role not supported') }}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Roles must alternate') }}
    {%- endif -%}
    {{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}
        {{ message['content'] | trim + '<end_of_turn>\\n' }}
        {%- endgeneration -%}
    {%- else -%}
        {{ message['content'] | trim + '<end_of_turn>\\n' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""

PHI = """\
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
        {{- message['content'] + '<|end|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] + '<|end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- elif messages[-1]['role'] == 'assistant' %}
    {%- generation %}
    {{- eos_token }}
    {%- endgeneration %}
{%- else %}
    {{- eos_token }}
{%- endif %}
"""

PHI_4 = """\
{% for message in messages %}{% if message['role'] == 'assistant' %}\
{{'<|im_start|>assistant<|im_sep|>'}}{% generation %}{{ message['content'] + '<|im_end|>'}}\
{% endgeneration %}{% else %}\
{{'<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>'}}\
{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}\
{% endif %}"""

ROLES_END_TURNS = """\
{#- <|system|> <|user|> <|assistant|> <|observation|> -#}
[gMASK]<sop>
{%- for m in messages %}
    {%- if loop.first or messages[loop.index0 - 1].role != 'assistant' or m.role == 'assistant' %}
        {{- '<|' + ('observation' if m.role == 'tool' else m.role) + '|>' }}
    {%- endif %}
    {%- if m.role == 'assistant' %}
        {%- generation %}
        {{- '\\n' + m.content.strip() }}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n<tool_call>' + call.function.name + '</tool_call>' }}
        {%- endfor %}
        {%- if not loop.last and messages[loop.index0 + 1].role != 'assistant' %}
            {%- set next = messages[loop.index0 + 1].role %}
            {{- '<|' + ('observation' if next == 'tool' else next) + '|>' }}
        {%- endif %}
        {%- endgeneration %}
    {%- else %}
        {{- '\\n' + m.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""

ROLES_END_TURNS_SHIPPED = """\
{#- <|system|> <|user|> <|assistant|> <|observation|> -#}
[gMASK]<sop>
{%- for m in messages %}
    {{- '<|' + ('observation' if m.role == 'tool' else m.role) + '|>' }}
    {%- if m.role == 'assistant' %}
        {{- '\\n' + m.content.strip() }}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n<tool_call>' + call.function.name + '</tool_call>' }}
        {%- endfor %}
    {%- else %}
        {{- '\\n' + m.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""

MISTRAL = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- for message in loop_messages %}
    {%- if message.role == 'user' %}
        {%- if tools and loop.index0 == 0 %}
            {{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\\n\\n' + message.content + ' [/INST]' }}
        {%- else %}
            {{- '[INST] ' + message.content + ' [/INST]' }}
        {%- endif %}
    {%- elif message.role == 'assistant' %}
        {%- generation %}
        {%- if message.tool_calls is defined %}
            {{- '[TOOL_CALLS] [' }}
            {%- for call in message.tool_calls %}
                {{- (call.function | tojson) + ('' if loop.last else ', ') }}
            {%- endfor %}
            {{- ']' }}
        {%- else %}
            {{- ' ' + message.content }}
        {%- endif %}
        {{- eos_token }}
        {%- endgeneration %}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS] ' + message.content + '[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception('Only user, assistant and tool are supported') }}
    {%- endif %}
{%- endfor %}
"""

DEEPSEEK = """\
{%- set ns = namespace(is_tool=false, system_prompt='') %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set ns.system_prompt = ns.system_prompt + message['content'] %}
    {%- endif %}
{%- endfor %}
{{- bos_token + ns.system_prompt }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {%- set ns.is_tool = false %}
        {{- '<｜User｜>' + message['content'] }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<｜outputs▁end｜>' if ns.is_tool else '<｜Assistant｜>' }}
        {%- set ns.is_tool = false %}
        {%- generation %}
        {{- message['content'].split('</think>')[-1] }}
        {%- for call in message['tool_calls'] or [] %}
            {{- '<｜call▁begin｜>' + call['function']['name'] + '<｜call▁end｜>' }}
        {%- endfor %}
        {{- '<｜end▁of▁sentence｜>' }}
        {%- endgeneration %}
    {%- elif message['role'] == 'tool' %}
        {{- '' if ns.is_tool else '<｜outputs▁begin｜>' }}
        {%- set ns.is_tool = true %}
        {{- '<｜output｜>' + message['content'] }}
    {%- endif %}
{%- endfor %}
{%- if ns.is_tool %}
    {{- '<｜outputs▁end｜>' }}
{%- endif %}
{%- if add_generation_prompt and not ns.is_tool %}
    {{- '<｜Assistant｜>' }}
{%- endif %}
"""

CHANNELS = """\
{%- macro today() %}
    {{- strftime_now('%Y-%m-%d') }}
{%- endmacro %}
{{- '<|start|>system<|message|>Current date: ' + today() + '<|end|>' }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|start|>assistant' }}
        {%- generation %}
        {%- if loop.last and message.thinking %}
            {{- '<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}
            {{- '<|start|>assistant' }}
        {%- endif %}
        {%- set future = namespace(answers=false) %}
        {%- for later in messages[loop.index:] %}
            {%- if later.role == 'assistant' %}
                {%- set future.answers = true %}
            {%- endif %}
        {%- endfor %}
        {%- if message.tool_calls %}
            {{- ' to=' + message.tool_calls[0].function.name + '<|message|>' }}
            {{- (message.tool_calls[0].function.arguments | tojson) + '<|call|>' }}
        {%- else %}
            {{- '<|channel|>final<|message|>' + message.content }}
            {{- '<|end|>' if future.answers or not loop.last else '<|return|>' }}
        {%- endif %}
        {%- endgeneration %}
    {%- else %}
        {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant' }}
{%- endif %}
"""

PROMPT_INSIDE_THE_LOOP = """\
{% for message in messages %}
{% if message['role'] == 'assistant' %}
{{ '<|assistant|>' }}
{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}

{% else %}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

NUMBERED = """\
{%- for k in range(messages | length) %}
    {%- set message = messages[k] %}
    {%- if message.role == 'assistant' %}
        {{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}
        {%- generation %}
        {{- message.content.strip() + '<|END_OF_TURN_TOKEN|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + message.content + '<|END_OF_TURN_TOKEN|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}
{%- endif %}
"""

HISTORY_AND_LAST = """\
{%- for message in messages[:-1] %}
    {{- '<|start_of_role|>' + message.role + '<|end_of_role|>' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
        {{- message.content + '<|end_of_text|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- message.content + '<|end_of_text|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- for last in messages[-1:] %}
    {{- '<|start_of_role|>' + last.role + '<|end_of_role|>' }}
    {%- if last.role == 'assistant' %}
        {%- generation %}
        {{- last.content + '<|end_of_text|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- last.content + '<|end_of_text|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_of_role|>assistant<|end_of_role|>' }}
{%- endif %}
"""

HUNYUAN = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- message['content'] + '<｜hy_place▁holder▁no▁3｜>' }}
        {%- continue %}
    {%- endif %}
    {%- if message['role'] != 'assistant' %}
        {{- '<｜hy_User｜>' + message['content'] }}
        {%- continue %}
    {%- endif %}
    {{- '<｜hy_Assistant｜>' }}
    {%- generation %}
    {{- message['content'] + '<｜hy_place▁holder▁no▁2｜>' }}
    {%- endgeneration %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<｜hy_Assistant｜>' }}
{%- endif %}
"""

FAMILIES: dict[str, tuple[str, str | None]] = {
    "ChatML, LFM2, SmolLM": (CHATML, None),
    "Llama 3 and 4": (LLAMA, None),
    "Qwen 3, thinking": (THINKING, None),
    "Gemma 2": (GEMMA, None),
    "Phi-3": (PHI, None),
    "Phi-4": (PHI_4, None),
    "GLM-4.5": (ROLES_END_TURNS, ROLES_END_TURNS_SHIPPED),
    "Mistral, Nemo": (MISTRAL, None),
    "DeepSeek": (DEEPSEEK, None),
    "gpt-oss": (CHANNELS, None),
    "Zephyr": (PROMPT_INSIDE_THE_LOOP, None),
    "Cohere, by number": (NUMBERED, None),
    "Granite, last turn apart": (HISTORY_AND_LAST, None),
    "Hunyuan": (HUNYUAN, None),
}
"""Style -> a template with marks, and as shipped where that is more than leaving them out."""

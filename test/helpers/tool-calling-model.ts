import type { KnownAnswers } from './known-answer-models.js';

/** The one thing a tool-calling model ever says: a call of a function with one argument, a text. */
export interface KnownCall {
  readonly name: string;
  readonly argument: string;
  readonly value: string;
}

/**
 * A model that answers every question with a call of a tool.
 *
 * llama-server learns from a model's template how it writes its calls. This one writes them with a space wherever
 * Jinja's `tojson` does, so that each piece between two spaces is a word and the model can say the whole as its answer.
 * Without tools in the request it is just a text.
 */
export function callingTool({ name, argument, value }: KnownCall): KnownAnswers {
  return {
    words: [
      '<tool_call>{"name":',
      `"${name}",`,
      '"arguments":',
      `{"${argument}":`,
      `"${value}"}}</tool_call>`,
    ],
    chatTemplate: [
      '{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}',
      '{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or "" }}',
      '{% for call in message.tool_calls or [] %}',
      '<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>',
      '{% endfor %}<|im_end|>\n{% endfor %}',
      '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}',
    ].join(''),
  };
}

/**
 * What makes a llama-server of llama.cpp's unified `llama` program: its subcommand, as the variable names it that
 * the program itself sets for its children (app/llama.cpp). Goes between the program and the options; empty for a
 * plain `llama-server`.
 */
export function appCommand(env: NodeJS.ProcessEnv): readonly string[] {
  const command = env['LLAMA_APP_CMD'];
  return command === undefined || command === '' ? [] : [command];
}

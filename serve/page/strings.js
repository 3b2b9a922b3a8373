/** What the page says: in English and in Chinese. */

import { icon } from "./dom.js";
import { preferences } from "./preferences.js";

export const TEXTS = {
  // frame
  skip: ["Skip to the message field", "跳到输入框"],
  newChat: ["New chat", "新对话"],
  newChatKeys: ["New chat (Ctrl+Shift+O)", "新对话（Ctrl+Shift+O）"],
  conversations: ["Conversations", "对话列表"],
  model: ["Model", "模型"],
  settings: ["Settings", "设置"],
  close: ["Close", "关闭"],
  cancel: ["Cancel", "取消"],
  undo: ["Undo", "撤销"],
  rename: ["New title", "新标题"],
  renameOf: ["Rename “{title}”", "重命名“{title}”"],
  deleteOf: ["Delete “{title}”", "删除“{title}”"],
  deleted: ["Deleted “{title}”", "已删除“{title}”"],
  notKept: ["The browser does not keep conversations: {why}", "浏览器无法保存对话：{why}"],
  noModels: ["No model", "没有模型"],
  adaptersOf: ["Adapters of {name}", "{name} 的适配器"],
  notServed: ["{name} (not served)", "{name}（未提供）"],
  modelGone: ["{name} is not served any more: new chats use {other}", "{name} 已不再提供，新对话使用 {other}"],
  // conversation
  welcome: ["What would you like to talk about?", "想聊点什么？"],
  example1: ["Explain how a language model chooses its next word.", "解释语言模型如何选择下一个词。"],
  example2: ["Write a short story about a camel who learns to swim.", "写一个骆驼学游泳的小故事。"],
  example3: ["Plan three days in a city I have never seen, as a table.", "用表格安排三天的陌生城市之旅。"],
  messages: ["Messages", "消息"],
  write: ["Write a message", "输入消息"],
  hint: [
    "Enter sends, Shift+Enter starts a new line. Models make mistakes: check what matters.",
    "Enter 发送，Shift+Enter 换行。模型会出错，重要内容请核实。",
  ],
  send: ["Send", "发送"],
  stop: ["Stop (Esc)", "停止（Esc）"],
  toEnd: ["Go to the end", "到最后"],
  you: ["You", "你"],
  assistant: ["Answer", "回答"],
  getAnswer: ["Get an answer", "获取回答"],
  thinking: ["Waiting for the first token…", "正在等待第一个词元…"],
  edit: ["Edit", "编辑"],
  editHint: ["What follows this message is dropped.", "此消息之后的内容将被删除。"],
  saveAndSend: ["Save and send", "保存并发送"],
  dropped: ["The later messages were dropped", "后面的消息已删除"],
  copy: ["Copy", "复制"],
  copied: ["Copied", "已复制"],
  code: ["Code", "代码"],
  table: ["Table", "表格"],
  regenerate: ["Answer again", "重新回答"],
  retry: ["Try again", "重试"],
  proceed: ["Continue", "继续"],
  stopped: ["Stopped.", "已停止。"],
  interrupted: [
    "Interrupted when the page was closed; what had arrived is kept.",
    "页面关闭时中断，已收到的内容都保留着。",
  ],
  empty: ["The model gave an empty answer.", "模型给出了空回答。"],
  length: ["Cut off at the limit of tokens.", "达到词元数上限，回答被截断。"],
  // figures
  written: ["{n} tokens", "{n} 个词元"],
  came: ["about {n} tokens", "约 {n} 个词元"],
  rate: ["{n} tokens/s", "{n} 词元/秒"],
  read: ["{n} read, {cached} from the cache", "读入 {n}，其中缓存 {cached}"],
  first: ["first after {n} s", "首个词元 {n} 秒"],
  probabilities: ["Token probabilities", "词元概率"],
  probability: ["Probability", "概率"],
  tokens: [
    "Tokens of the answer; arrow keys move, focus shows the alternatives",
    "回答的词元；用方向键移动，聚焦时显示备选",
  ],
  chance: ["{text}, {chance}", "{text}，{chance}"],
  // errors
  failed: ["The answer failed.", "回答失败。"],
  status: ["The server answered: {status}", "服务器返回：{status}"],
  unreachable: ["The server cannot be reached. Is it running?", "无法连接服务器，它在运行吗？"],
  tooLong: [
    "Start a new chat, or edit an earlier message: what follows it is dropped.",
    "请开始新对话，或编辑较早的消息：其后的内容将被删除。",
  ],
  broken: ["The connection ended before the answer was complete.", "回答尚未完成，连接就中断了。"],
  keyTitle: ["API key", "API 密钥"],
  keyText: [
    "This server asks for a key. It is kept until this tab is closed.",
    "此服务器需要密钥。密钥保留到关闭此标签页为止。",
  ],
  keyWrong: ["The server refused that key. Give another one.", "服务器拒绝了该密钥，请换一个。"],
  useKey: ["Use key", "使用密钥"],
  keyKept: ["An API key is kept until this tab is closed", "API 密钥保留到关闭此标签页为止"],
  forget: ["Forget", "清除"],
  // settings
  thisChat: ["This conversation", "本对话"],
  system: ["System prompt", "系统提示"],
  systemNone: ["None", "无"],
  systemHelp: ["Stands before the first message and steers all answers.", "位于第一条消息之前，影响所有回答。"],
  sampling: ["Sampling", "采样"],
  ofModel: ["model's own", "模型默认"],
  reset: ["Back to the model's own", "恢复模型默认"],
  temperature: ["Temperature", "温度"],
  temperatureHelp: ["0 always takes the likeliest token", "0 总是选择最可能的词元"],
  top_p: ["Top p", "Top p"],
  top_pHelp: ["Likeliest tokens up to this total probability", "只取累计概率以内最可能的词元"],
  top_k: ["Top k", "Top k"],
  top_kHelp: ["Only the k likeliest tokens; 0 for all", "只取最可能的 k 个词元，0 表示全部"],
  min_p: ["Min p", "Min p"],
  min_pHelp: ["Least probability, relative to the likeliest", "相对于最可能词元的最低概率"],
  repetition_penalty: ["Repetition penalty", "重复惩罚"],
  repetition_penaltyHelp: ["Above 1 avoids tokens already said", "大于 1 时避免重复已出现的词元"],
  max_tokens: ["Max tokens", "最大词元数"],
  max_tokensHelp: ["Longest answer", "回答的最大长度"],
  seed: ["Seed", "随机种子"],
  seedHelp: ["The same seed gives the same answer", "相同的种子得到相同的回答"],
  display: ["Display", "显示"],
  showProbabilities: ["Token probabilities", "词元概率"],
  probabilitiesHelp: ["Asks for them with each new answer and colours its tokens", "为每个新回答获取概率，并为词元着色"],
  language: ["Language", "语言"],
  theme: ["Theme", "主题"],
  ofBrowser: ["As the browser", "跟随浏览器"],
  light: ["Light", "浅色"],
  dark: ["Dark", "深色"],
  files: ["Files", "文件"],
  exportThis: ["Export this conversation", "导出本对话"],
  exportAll: ["Export all conversations", "导出所有对话"],
  sharegpt: ["ShareGPT", "ShareGPT"],
  openai: ["OpenAI", "OpenAI"],
  import: ["Import…", "导入…"],
  importHelp: ["ShareGPT or OpenAI, JSON or JSONL", "ShareGPT 或 OpenAI，JSON 或 JSONL"],
  imported: ["Conversations imported: {n}", "已导入 {n} 个对话"],
  noTurns: [
    "record {number} has neither “messages” nor “conversations”",
    "第 {number} 条记录既没有 “messages” 也没有 “conversations”",
  ],
  badRole: [
    "record {number}, turn {turn}: role {role} is not system (first turn only), user or assistant",
    "第 {number} 条记录第 {turn} 轮：角色 {role} 不是 system（仅限首轮）、user 或 assistant",
  ],
  badContent: ["record {number}, turn {turn}: the content is not text", "第 {number} 条记录第 {turn} 轮：内容不是文本"],
  badJson: ["line {line} is not JSON", "第 {line} 行不是 JSON"],
};

export const languages = [["en", "English"], ["zh", "中文"]];

const language = () => preferences.language ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

/** The text of a name, with the values of its places in braces. */
export function t(name, values = {}) {
  return TEXTS[name][Number(language() === "zh")].replace(/\{(\w+)\}/g, (_, place) => values[place]);
}

export const number = (n) => n.toLocaleString(language());

/** Puts texts and icons into the elements that name theirs: data-t for the text, data-t-NAME for an attribute, data-icon. */
export function translate(root) {
  document.documentElement.lang = language() === "zh" ? "zh-CN" : "en";
  for (const node of root.querySelectorAll("[data-t], [data-icon]")) {
    node.replaceChildren(...(node.dataset.icon ? [icon(node.dataset.icon)] : []), ...(node.dataset.t ? [t(node.dataset.t)] : []));
  }
  for (const name of ["aria-label", "title"]) {
    for (const node of root.querySelectorAll(`[data-t-${name}]`)) node.setAttribute(name, t(node.getAttribute(`data-t-${name}`)));
  }
}
